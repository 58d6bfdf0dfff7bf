package puppetserver

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
)

// stub answers GETs of the chain and the CRL as Puppet Server does, out of a
// CA directory, and the rest with what a test sets. What the server does with the rest of
// its API is for test/e2e, on the real one.
type stub struct {
	directory *directory.Authority
	options   Options
	server    *httptest.Server
	signing   *signing // where newSigningStub made it

	mu    sync.Mutex
	calls []string // "METHOD /path", and what If-Modified-Since it had
	down  bool
	now   time.Time // of both sides
	mtime time.Time // of the CRL's file

	names http.HandlerFunc // answers the rest of the API; nil: 404. It holds mu
}

func newStub(t *testing.T) *stub {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca")
	check(t, directory.Create(path, directory.CreateOptions{Host: "puppet.test", Key: ca.ECP256}))
	return newStubOf(t, path)
}

// newStubOf is newStub for a CA directory that is there.
func newStubOf(t *testing.T, path string) *stub {
	t.Helper()
	dir := t.TempDir()
	authority, err := directory.Open(path, directory.Options{})
	check(t, err)
	t.Cleanup(func() { check(t, authority.Close()) })
	s := &stub{directory: authority, now: time.Now(), mtime: time.Now().Add(-time.Hour)}
	s.options = Options{
		Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(path, "ca_crt.pem"),
		Now: s.clock,
	}
	s.identify(t)
	pair, err := tls.LoadX509KeyPair(s.options.Certificate, s.options.Key)
	check(t, err)
	server := httptest.NewUnstartedServer(s)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()
	s.server = server
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	check(t, err)
	s.options.URL = "https://localhost:" + u.Port()
	return s
}

// identify writes a new client certificate, which is the server's too.
func (s *stub) identify(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ca.GenerateKey(ca.ECP256)
	check(t, err)
	cert, err := s.directory.Sign(t.Context(), ca.Request{Certname: "localhost", Serial: s.directory.NewSerial(), Key: key, TTL: time.Hour})
	check(t, err)
	text, err := ca.MarshalKeyPEM(key)
	check(t, err)
	check(t, os.WriteFile(s.options.Key, text, 0o600))
	check(t, os.WriteFile(s.options.Certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o644))
	return cert
}

func (s *stub) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// advance lets time pass on both sides.
func (s *stub) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// took returns the calls since the last time.
func (s *stub) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

func (s *stub) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, err := http.ParseTime(r.Header.Get("If-Modified-Since"))
	call := r.Method + " " + r.URL.Path
	if err == nil {
		call += " conditional"
	}
	s.calls = append(s.calls, call)
	if s.down {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Date", s.now.UTC().Format(http.TimeFormat))
	trust, _ := s.directory.Trust(r.Context())
	switch {
	case r.URL.Path == chainPath:
		_, _ = w.Write(trust.CertificatesPEM)
	case r.URL.Path == crlPath && (err != nil || s.mtime.After(since)): // clj-time's after?
		_, _ = w.Write(trust.CRLsPEM)
	case r.URL.Path == crlPath:
		w.WriteHeader(http.StatusNotModified)
	case s.names != nil:
		s.names(w, r)
	default:
		http.NotFound(w, r)
	}
}

// front puts a handler before the stub, outside its lock.
func (s *stub) front(f func(w http.ResponseWriter, r *http.Request, next http.HandlerFunc)) {
	s.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(w, r, s.ServeHTTP) })
}

func (s *stub) open(t *testing.T) *Authority {
	t.Helper()
	a, err := New(s.options)
	check(t, err)
	t.Cleanup(func() { check(t, a.Close()) })
	return a
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
