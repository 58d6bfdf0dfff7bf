package puppetserver

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

func (n *names) query(t *testing.T, r ca.Request) ca.Query {
	t.Helper()
	hash, err := ca.KeyHash(r.PublicKey())
	check(t, err)
	return ca.Query{Certname: r.Certname, KeyHash: hash, Since: n.stub.clock()}
}

// late is a call that the server carries out when the test says so, after its answer was lost.
type late struct {
	n     *names
	arm   string // "METHOD /path"
	early func(body []byte)
	run   func(body []byte) // with the lock held

	body []byte
}

// lose has the next call that it is armed with lost.
func (l *late) lose(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
	if r.Method+" "+r.URL.Path != l.arm {
		next(w, r)
		return
	}
	l.arm = ""
	l.body, _ = io.ReadAll(r.Body)
	if l.early != nil {
		l.n.with(func() { l.early(l.body) })
	}
	panic(http.ErrAbortHandler)
}

func (l *late) arrive() { l.n.with(func() { l.run(l.body) }) }

func (n *names) with(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// signNow signs the CSR in the server's memory, even if requests/ has another one now.
func (n *names) signNow(name string, csr []byte) {
	n.requests[name] = csr
	q, _ := http.NewRequest(http.MethodPut, "/", nil)
	n.sign(q, name, 0)
}

// stranger reports a certificate in force that Find has not returned.
func (n *names) stranger(t *testing.T, a *Authority, name string, found ca.Found) {
	t.Helper()
	var serial node.Serial
	n.with(func() { serial = n.serials[name] })
	_, listed, err := a.listed(t.Context(), serial)
	check(t, err)
	if serial != "" && serial != found.Serial && !listed[serial] {
		t.Errorf("serial %s is in force, but Find returned %q", serial, found.Serial)
	}
}

// What the server does after its answer was lost is what Find reports: it
// says nothing final until that can't come any more.
func TestFindWaitsForWhatTheServerMayStillDo(t *testing.T) {
	put := "PUT " + apiPath + "certificate_request/web1.test"
	for what, l := range map[string]func(*names) *late{
		"the CSR comes late, and is autosigned": func(n *names) *late {
			return &late{n: n, arm: put, run: func(csr []byte) { n.signNow("web1.test", csr) }}
		},
		"the policy script is slow": func(n *names) *late {
			return &late{n: n, arm: put,
				early: func(csr []byte) { n.requests["web1.test"] = csr },
				run:   func(csr []byte) { n.signNow("web1.test", csr) }}
		},
		"the signing waits for a lock": func(n *names) *late {
			var csr []byte
			return &late{n: n, arm: "PUT " + statusPath("web1.test"),
				early: func([]byte) { csr = n.requests["web1.test"] },
				run:   func([]byte) { n.signNow("web1.test", csr) }}
		},
		"the CSR comes late": func(n *names) *late {
			return &late{n: n, arm: put, run: func(csr []byte) { n.requests["web1.test"] = csr }}
		},
	} {
		t.Run(what, func(t *testing.T) {
			n := newNames(t)
			l := l(n)
			n.stub.front(l.lose)
			a := n.stub.open(t)
			n.stub.advance(time.Second)
			r := request(t, "web1.test", time.Hour)
			q := n.query(t, r)
			if cert, err := a.Sign(t.Context(), r); !errors.Is(err, node.ErrUnavailable) {
				t.Errorf("Sign: %v, %v; the server may still be at it", cert, err)
			}
			n.stub.advance(a.opts.SignWait - time.Second)
			_, err := a.Find(t.Context(), q)
			busy, ok := errors.AsType[*node.BusyError](err)
			if !ok || busy.RetryAfter != time.Second || !strings.Contains(err.Error(), "web1.test") {
				t.Errorf("Find: %v, want that it is too early for a second more", err)
			}
			l.arrive()
			n.stub.advance(time.Second)
			found, err := a.Find(t.Context(), q)
			check(t, err)
			if !found.Issued {
				t.Error("Find does not report what was signed")
			}
			n.stranger(t, a, "web1.test", found)
		})
	}
}

// Of what an earlier process sent nothing is known but when it was intended.
func TestFindWaitsForWhatAnEarlierProcessSent(t *testing.T) {
	for what, c := range map[string]struct{ before, wait time.Duration }{
		"killed just now": {time.Second, 65 * time.Second},
		"intended long ago, so that it can't have been sent just now": {2*time.Minute + 30*time.Second, 35 * time.Second},
		"intended very long ago": {4 * time.Minute, 0},
	} {
		n := newNames(t)
		r := request(t, "web1.test", time.Hour)
		q := n.query(t, r)
		n.stub.advance(c.before)
		a := n.stub.open(t)
		if c.wait > 0 {
			n.stub.advance(c.wait - time.Second)
			if _, err := a.Find(t.Context(), q); !errors.Is(err, node.ErrUnavailable) {
				t.Errorf("%s: Find: %v a second too early", what, err)
			}
			n.stub.advance(time.Second)
		}
		if found, err := a.Find(t.Context(), q); err != nil || found.Issued {
			t.Errorf("%s: Find: %+v, %v", what, found, err)
		}
	}
}

// Find does not wait if nothing was sent, if the answer is known, or if there is a certificate.
func TestFindDoesNotWaitForNothing(t *testing.T) {
	for what, fail := range map[string]func(n *names){
		"refused":     func(n *names) { n.answer["PUT "+apiPath+"certificate_request/web1.test"] = http.StatusBadRequest },
		"forbidden":   func(n *names) { n.answer["PUT "+apiPath+"certificate_request/web1.test"] = http.StatusForbidden },
		"foreign":     func(n *names) { n.requests["web1.test"] = []byte("another's") },
		"500":         func(n *names) { n.answer["PUT "+statusPath("web1.test")] = http.StatusInternalServerError },
		"unreachable": func(n *names) { n.stub.options.URL = "https://localhost:1" },
	} {
		n := newNames(t)
		fail(n)
		a := n.stub.open(t)
		r := request(t, "web1.test", time.Hour)
		q := n.query(t, r)
		if _, err := a.Sign(t.Context(), r); err == nil {
			t.Errorf("%s: signed", what)
		}
		clear(n.answer)
		if _, err := a.Find(t.Context(), q); what != "unreachable" && err != nil {
			t.Errorf("%s: Find: %v", what, err)
		}
		if err := a.tooEarly(q); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A proxy that got no answer in time knows no more than we.
func TestFindWaitsBehindAProxy(t *testing.T) {
	n := newNames(t)
	n.answer["PUT "+statusPath("web1.test")] = http.StatusGatewayTimeout
	a := n.stub.open(t)
	r := request(t, "web1.test", time.Hour)
	q := n.query(t, r)
	if _, err := a.Sign(t.Context(), r); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("Sign: %v", err)
	}
	n.with(func() { clear(n.answer) })
	if found, err := a.Find(t.Context(), q); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("Find: %+v, %v", found, err)
	}
}

// A lost answer does no harm where the certificate is there.
func TestALostAnswerWithACertificateIsGoneOnWith(t *testing.T) {
	for _, kind := range []string{"certificate_request", "certificate_status"} {
		n := newNames(t)
		n.autosigns = kind == "certificate_request"
		n.stub.front(func(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
			next(w, r)
			if r.Method == http.MethodPut && r.URL.Path == apiPath+kind+"/web1.test" {
				panic(http.ErrAbortHandler)
			}
		})
		a := n.stub.open(t)
		r := request(t, "web1.test", time.Hour)
		cert, err := a.Sign(t.Context(), r)
		check(t, err)
		found, err := a.Find(t.Context(), n.query(t, r))
		if err != nil || found.Serial != node.SerialOf(cert.SerialNumber) {
			t.Errorf("%s: Find: %+v, %v", kind, found, err)
		}
	}
}

// A CSR that arrives between Find's two looks is not left behind.
func TestFindSeesACSRInItsSecondLook(t *testing.T) {
	n := newNames(t)
	r := request(t, "web1.test", time.Hour)
	csr, err := makeCSR(r)
	check(t, err)
	var gets atomic.Int64
	n.stub.front(func(w http.ResponseWriter, q *http.Request, next http.HandlerFunc) {
		if q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, "/web1.test") && gets.Add(1) == 3 {
			n.with(func() { n.requests["web1.test"] = csr })
		}
		next(w, q)
	})
	a := n.stub.open(t)
	found, err := a.Find(t.Context(), n.query(t, r))
	check(t, err)
	if !found.Issued || n.requests["web1.test"] != nil {
		t.Errorf("found %+v, left is the CSR %q", found, n.requests["web1.test"])
	}
}

// What says 404 to everything is not the CA.
func TestA404IsNoAnswerWhereItIsNotTheCAs(t *testing.T) {
	n := newNames(t)
	a := n.stub.open(t)
	r := request(t, "web1.test", time.Hour)
	_, err := a.Sign(t.Context(), r)
	check(t, err)
	n.stub.front(func(w http.ResponseWriter, q *http.Request, _ http.HandlerFunc) {
		_, _ = io.Copy(io.Discard, q.Body)
		http.Error(w, "default backend", http.StatusNotFound)
	})
	if found, err := a.Find(t.Context(), n.query(t, r)); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("Find: %+v, %v", found, err)
	}
	if _, err := a.Sign(t.Context(), request(t, "web2.test", time.Hour)); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("Sign: %v", err)
	}
}

// A certificate of another key that our own order to sign brought about comes
// back with the error, so that it is revoked.
func TestWhatWasSignedForAnotherIsHandedBack(t *testing.T) {
	n := newNames(t)
	foreign, err := makeCSR(request(t, "web1.test", time.Hour))
	check(t, err)
	n.stub.front(func(w http.ResponseWriter, q *http.Request, next http.HandlerFunc) {
		if q.Method == http.MethodPut && q.URL.Path == statusPath("web1.test") {
			n.with(func() { n.requests["web1.test"] = foreign })
		}
		next(w, q)
	})
	a := n.stub.open(t)
	cert, err := a.Sign(t.Context(), request(t, "web1.test", time.Hour))
	if err == nil || cert == nil || node.SerialOf(cert.SerialNumber) != n.serials["web1.test"] {
		t.Errorf("got %v, %v, want the certificate with serial %s and an error", cert, err, n.serials["web1.test"])
	}
	// One of our key that has not what was asked for is Find's.
	n.autosigns = true
	r := request(t, "web2.test", 10*time.Hour)
	if cert, err := a.Sign(t.Context(), r); err == nil || cert != nil {
		t.Errorf("got %v, %v", cert, err)
	}
}
