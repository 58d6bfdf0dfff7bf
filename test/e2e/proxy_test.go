package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// proxy stands in front of a real Puppet Server. It passes every call on with the
// client certificate that it was given, but for the faults that a test asks for.
type proxy struct {
	URL string
	CA  string // file: what to trust it by

	mu    sync.Mutex
	fault func(*http.Request, []byte) fault
	calls []string // "METHOD /path" of all calls
}

// fault is what happens to a call.
type fault int

const (
	pass       fault = iota
	dropBefore       // the connection breaks before the server gets the call
	dropAfter        // the server acts, the connection breaks before its answer
	fail500          // the answer is 500, the server never sees the call
	fail404          // likewise, as a server that lacks the call
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
	case fail500:
		http.Error(w, "Error while cleaning certs: made by the test", http.StatusInternalServerError)
		return
	case fail404:
		http.NotFound(w, r)
		return
	}
	// Not the caller's context: a server goes on with what it has begun.
	out, err := http.NewRequest(r.Method, target+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	out.Header = r.Header.Clone()
	resp, err := transport.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler) // the server is down: no answer
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || f == dropAfter {
		panic(http.ErrAbortHandler)
	}
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer)
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
