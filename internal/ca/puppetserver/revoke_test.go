package puppetserver

import (
	"net/http"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
)

// How long a lost revocation may still be at work depends on the server.
func TestQuietFitsTheServer(t *testing.T) {
	for what, c := range map[string]struct {
		version string
		longest time.Duration
		want    time.Duration
	}{
		"7.9":     {"7.9.5", time.Second, 10 * time.Second},
		"8.7":     {"8.7.0", time.Second, 65 * time.Second},
		"unknown": {"", time.Second, 65 * time.Second},
		"slow":    {"7.9.5", time.Minute, 2 * time.Minute},
	} {
		n := newNames(t)
		n.stub.front(func(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
			if r.URL.Path != "/status/v1/services" || c.version == "" {
				next(w, r)
				return
			}
			_, _ = w.Write([]byte(`{"ca": {"service_version": "` + c.version + `"}}`))
		})
		a := n.stub.open(t)
		a.longest = c.longest
		if got := a.quietTime(t.Context()); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

// A server that wrote the CRL and did not delete the certificate has not freed the
// name: there is no receipt, so that it is cleaned again.
func TestNoReceiptWhileTheCertificateStands(t *testing.T) {
	for how, stop := range map[string]func(w http.ResponseWriter){
		"lost": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"500":  func(w http.ResponseWriter) { http.Error(w, "disk full", http.StatusInternalServerError) },
	} {
		n := newNames(t)
		n.stub.options.Quiet = time.Nanosecond
		fails := true
		var all []ca.Target
		n.stub.front(func(w http.ResponseWriter, q *http.Request, next http.HandlerFunc) {
			if q.URL.Path != apiPath+"clean" || !fails {
				next(w, q)
				return
			}
			n.stub.set(func() {
				_, err := n.stub.directory.Revoke(t.Context(), all)
				check(t, err)
				n.stub.mtime = n.stub.now
			})
			n.with(func() { delete(n.signed, "gone.test") })
			stop(w)
		})
		a := n.stub.open(t)
		all = targets(t, a, "web1.test", "gone.test")
		receipts, err := a.Revoke(t.Context(), all)
		if err == nil || len(receipts) != 2 || receipts[0].Serial != "" || receipts[1].Serial == "" {
			t.Errorf("%s: receipts %+v, %v, want one, of the name that is free", how, receipts, err)
		}
		fails = false
		receipts, err = a.Revoke(t.Context(), all[:1])
		check(t, err)
		if receipts[0].Serial == "" || n.signed["web1.test"] != nil {
			t.Errorf("%s: receipts %+v, left is %q", how, receipts, n.signed)
		}
	}
}

// A name is not given up to another while a lost call may still delete by it.
func TestALostDeleteIsWaitedFor(t *testing.T) {
	n := newNames(t)
	a := n.stub.open(t)
	all := targets(t, a, "web1.test")
	n.stub.front(func(w http.ResponseWriter, q *http.Request, next http.HandlerFunc) {
		if q.Method == http.MethodDelete {
			panic(http.ErrAbortHandler)
		}
		next(w, q)
	})
	receipts, err := a.Revoke(t.Context(), all)
	if err == nil || len(receipts) > 0 && receipts[0].Serial != "" {
		t.Errorf("receipts %+v, %v", receipts, err)
	}
	if a.lostAt.IsZero() {
		t.Error("the next revocation does not wait for it")
	}
}
