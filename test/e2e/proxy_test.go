package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxy forwards calls to a real Puppet Server, with the client certificate of its
// options. A test can set faults.
type proxy struct {
	URL string
	CA  string // file: what to trust it by

	held  sync.WaitGroup // calls that arrive late
	until chan struct{}  // closed: those of dropHeld arrive
	mu    sync.Mutex
	fault func(*http.Request, []byte) fault
	calls []string // "METHOD /path" of all calls
}

// fault is the fault of a call.
type fault int

const (
	pass         fault = iota
	dropBefore         // the connection breaks before the server gets the call
	dropAfter          // the server acts, the connection breaks before its answer
	dropMidway         // the server acts, the connection breaks within its answer
	dropLate           // the connection breaks, and the server gets the call up to a second later
	dropHeld           // the connection breaks, and the server gets the call when until is closed
	fail500            // the answer is 500, the server never sees the call
	fail500After       // the server acts, the answer is 500
	fail500Half        // the server acts on the first half of the names of a /clean, the answer is 500
	fail404            // the server never sees the call, as one that lacks it
	fail405            // likewise
)

func startProxy(t *testing.T, target string, certificate tls.Certificate, roots *x509.CertPool) *proxy {
	t.Helper()
	p := &proxy{}
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{certificate}, RootCAs: roots, MinVersion: tls.VersionTLS12,
	}}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.pass(w, r, target, transport)
	}))
	t.Cleanup(func() { server.Close(); transport.CloseIdleConnections() })
	p.URL, p.CA = server.URL, filepath.Join(t.TempDir(), "proxy.pem")
	check(t, os.WriteFile(p.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	return p
}

func (p *proxy) pass(w http.ResponseWriter, r *http.Request, target string, transport http.RoundTripper) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	p.mu.Lock()
	p.calls = append(p.calls, r.Method+" "+r.URL.Path)
	f := pass
	if p.fault != nil {
		f = p.fault(r, body)
	}
	p.mu.Unlock()
	switch f {
	case dropBefore:
		panic(http.ErrAbortHandler)
	case dropLate, dropHeld:
		p.held.Go(func() {
			if f == dropHeld {
				<-p.until
			} else {
				<-time.After(rand.N(time.Second))
			}
			_, _, _ = forward(r, body, target, transport)
		})
		panic(http.ErrAbortHandler)
	case fail500:
		http.Error(w, "Error while cleaning certs: made by the test", http.StatusInternalServerError)
		return
	case fail404:
		http.NotFound(w, r)
		return
	case fail405:
		http.Error(w, "made by the test", http.StatusMethodNotAllowed)
		return
	case fail500Half:
		body = firstHalf(body)
	}
	resp, answer, err := forward(r, body, target, transport)
	if err != nil || f == dropAfter {
		panic(http.ErrAbortHandler)
	}
	if f == fail500After || f == fail500Half {
		http.Error(w, "Error while cleaning certs: made by the test", http.StatusInternalServerError)
		return
	}
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	if f == dropMidway {
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)+1))
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer)
}

// forward sends a call to the server, and returns the answer.
func forward(r *http.Request, body []byte, target string, transport http.RoundTripper) (*http.Response, []byte, error) {
	// The caller's context does not end this call, as a server finishes a call that it has begun.
	out, err := http.NewRequest(r.Method, target+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	out.Header = r.Header.Clone()
	resp, err := transport.RoundTrip(out)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp, answer, err
}

// firstHalf of the names of a /clean.
func firstHalf(body []byte) []byte {
	var names struct {
		Certnames []string `json:"certnames"`
	}
	if json.Unmarshal(body, &names) != nil {
		return body
	}
	names.Certnames = names.Certnames[:len(names.Certnames)/2]
	half, err := json.Marshal(names)
	if err != nil {
		return body
	}
	return half
}

// on sets the fault of all calls from now on; nil: none.
func (p *proxy) on(f func(r *http.Request, body []byte) fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.calls = f, nil
}

// once makes a fault of the first call that starts with "METHOD /path".
func (p *proxy) once(call string, f fault) {
	done := false
	p.on(func(r *http.Request, _ []byte) fault {
		if done || !strings.HasPrefix(r.Method+" "+r.URL.Path, call) {
			return pass
		}
		done = true
		return f
	})
}

// after returns when n calls that start with "METHOD /path" have come; none fails from now on.
func (p *proxy) after(n int, call string) {
	come := make(chan struct{})
	p.on(func(r *http.Request, _ []byte) fault {
		if strings.HasPrefix(r.Method+" "+r.URL.Path, call) {
			if n--; n == 0 {
				close(come)
			}
		}
		return pass
	})
	<-come
}

// count says how many calls there were that start with "METHOD /path".
func (p *proxy) count(call string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, c := range p.calls {
		if strings.HasPrefix(c, call) {
			n++
		}
	}
	return n
}
