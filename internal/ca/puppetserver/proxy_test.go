package puppetserver

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// proxied is an answer that a proxy gives in Puppet Server's place.
type proxied struct {
	code   int
	header map[string]string
	body   string
	says   []string // in the error
}

const page = "<!DOCTYPE html>\n<html><head><title>Single  sign-on\n required</title></head><body>x</body></html>"

var proxies = map[string]proxied{
	"a redirect":           {302, map[string]string{"Location": "https://login.test/?a=b"}, "", []string{"302", "https://login.test/", "authority.puppetserver.url"}},
	"a permanent one":      {308, map[string]string{"Location": "https://other.test:8140/"}, page, []string{"308", "https://other.test:8140/", "authority.puppetserver.url"}},
	"a login":              {401, map[string]string{"WWW-Authenticate": "Basic"}, page, []string{"401", "authority.puppetserver.url"}},
	"a proxy's own login":  {407, nil, "", []string{"407", "authority.puppetserver.url"}},
	"a page":               {200, nil, page, []string{"Single sign-on required", "authority.puppetserver.url"}},
	"a page of 400":        {400, nil, "<html><h1>400 Bad Request</h1>\n<p>The SSL certificate error</p></html>", []string{"400 Bad Request The SSL certificate error", "authority.puppetserver.url"}},
	"a page of 403":        {403, nil, page, []string{"Single sign-on required", "authority.puppetserver.url"}},
	"a page of 404":        {404, nil, page, []string{"Single sign-on required", "authority.puppetserver.url"}},
	"too long a body":      {413, nil, "<html>413 Request Entity Too Large</html>", []string{"413 Request Entity Too Large"}},
	"a busy server":        {503, map[string]string{"Retry-After": "600"}, page, []string{"try again in 10m"}},
	"a limit":              {429, map[string]string{"Retry-After": "600"}, "", []string{"try again in 10m"}},
	"a server that sleeps": {503, nil, "<html><title>503 Service Unavailable</title></html>", []string{"503 503 Service Unavailable"}},
}

func (p proxied) write(w http.ResponseWriter) {
	for k, v := range p.header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(p.code)
	_, _ = w.Write([]byte(p.body))
}

// Whichever call of a Sign a proxy answers: the error says what to change, is no refusal by the CA and no
// foreign certificate, and the Sign leaves nothing at the server once it is settled.
func TestProxies(t *testing.T) {
	for name, p := range proxies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := 1; ; at++ {
				n := newNames(t)
				var mu sync.Mutex
				calls, on := 0, true
				n.stub.front(func(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
					mu.Lock()
					calls++
					ours := on && calls >= at
					mu.Unlock()
					if ours {
						p.write(w)
						return
					}
					next(w, r)
				})
				a := n.stub.open(t)
				r := request(t, "web1.test", time.Hour)
				q := n.query(t, r)
				_, err := a.Sign(t.Context(), r)
				mu.Lock()
				last := calls < at
				on = false
				mu.Unlock()
				if last {
					if err != nil {
						t.Errorf("call %d: without a proxy: %v", at, err)
					}
					return
				}
				if !errors.Is(err, node.ErrUnavailable) || errors.Is(err, node.ErrRefused) || errors.Is(err, node.ErrForeignCertificate) || errors.Is(err, node.ErrForeignRequest) {
					t.Fatalf("call %d: %v", at, err)
				}
				for _, want := range p.says {
					if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "invalid character") {
						t.Errorf("call %d: says %v, want %q in it", at, err, want)
					}
				}
				n.settled(t, a, q, errors.Is(err, ca.ErrNotIssued))
			}
		})
	}
}

// settled checks that nothing of a Sign is left at the server after a Find, or without one where the Sign said so.
func (n *names) settled(t *testing.T, a *Authority, q ca.Query, said bool) {
	t.Helper()
	if !said {
		a.pause.until.Store(0) // the wait is over
		n.stub.advance(2 * a.opts.SignWait)
		found, err := a.Find(t.Context(), q)
		if err != nil {
			t.Errorf("Find: %v", err)
		}
		n.stranger(t, a, string(q.Certname), found)
	} else if n.signed[string(q.Certname)] != nil {
		t.Error("a certificate was issued")
	}
	if n.requests[string(q.Certname)] != nil {
		t.Error("a request stays at the server")
	}
}

// A proxy that passes on all but the signing leaves no request behind: espm deletes it, and says that there is no
// certificate. The next Sign finds the obstacle before it sends a request.
func TestASigningThatIsForbidden(t *testing.T) {
	n := newNames(t)
	calls := map[string]int{}
	n.stub.front(func(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
		n.with(func() { calls[r.Method+" "+strings.TrimPrefix(r.URL.Path, apiPath)]++ })
		if strings.Contains(r.URL.Path, "certificate_status") && (r.Method == http.MethodPut || r.Method == http.MethodGet && calls["PUT certificate_status/web1.test"] > 0) {
			http.Error(w, "Forbidden request", http.StatusForbidden)
			return
		}
		next(w, r)
	})
	a := n.stub.open(t)
	for range 2 {
		_, err := a.Sign(t.Context(), request(t, "web1.test", time.Hour))
		if forbidden := (*ForbiddenError)(nil); !errors.As(err, &forbidden) || !errors.Is(err, ca.ErrNotIssued) || !strings.Contains(err.Error(), "auth.conf") {
			t.Errorf("got %v", err)
		}
		if n.requests["web1.test"] != nil || n.signed["web1.test"] != nil {
			t.Error("something is left at the server")
		}
	}
	if calls["PUT certificate_request/web1.test"] != 1 {
		t.Errorf("the second Sign sent a request: %v", calls)
	}
}

// espm waits as long as an answer asks for, with every call, and then sends the call again.
func TestRetryAfter(t *testing.T) {
	for name, header := range map[string]func() string{
		"seconds": func() string { return "1" },
		"a time":  func() string { return time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat) },
	} {
		for _, code := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
			n := newNames(t)
			n.stub.options.Now = time.Now
			var asked, again time.Time
			n.stub.front(func(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
				var first bool
				n.with(func() {
					if first = asked.IsZero() && r.Method == http.MethodPut; first {
						asked = time.Now()
					} else if again.IsZero() && !asked.IsZero() {
						again = time.Now()
					}
				})
				if first {
					w.Header().Set("Retry-After", header())
					http.Error(w, "later", code)
					return
				}
				next(w, r)
			})
			a := n.stub.open(t)
			_, err := a.Sign(t.Context(), request(t, "web1.test", time.Hour))
			check(t, err)
			if waited := again.Sub(asked); waited < 900*time.Millisecond {
				t.Errorf("%s, %d: the next call came after %v", name, code, waited)
			}
		}
	}
}

// A wait that is longer than the call's limit is the caller's, who is told how long it is. Meanwhile espm sends nothing.
func TestALongRetryAfter(t *testing.T) {
	n := newNames(t)
	a := n.stub.open(t)
	_, err := a.Trust(t.Context())
	check(t, err)
	n.stub.front(func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) {
		w.Header().Set("Retry-After", "1800")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	for range 2 {
		begin := time.Now()
		_, err := a.Sign(t.Context(), request(t, "web1.test", time.Hour))
		busy, ok := errors.AsType[*node.BusyError](err)
		if !ok || !errors.Is(err, ca.ErrNotIssued) || busy.RetryAfter < 29*time.Minute || busy.RetryAfter > 30*time.Minute || time.Since(begin) > 30*time.Second {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
		n.stub.front(func(http.ResponseWriter, *http.Request, http.HandlerFunc) { t.Error("espm did not wait") })
	}
}

func TestRetryAfterForms(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": unsaidWait, "soon": unsaidWait, "0": 0, "-1": 0, "7": 7 * time.Second, "999999999": longestWait,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
		"99999999999999999999999": unsaidWait,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func FuzzPage(f *testing.F) {
	f.Add([]byte(page))
	f.Add([]byte("<html><style>b{}</style>x"))
	f.Add([]byte("Could not find certificate\nx"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if line := firstLine(body); strings.Contains(line, "\n") || len(line) > 510 {
			t.Errorf("%q is shortened to %q", body, line)
		}
	})
}
