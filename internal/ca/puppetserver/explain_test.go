package puppetserver

import (
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

// What an operator reads says where it was tried and what to look at.
func TestErrorsSayWhatToLookAt(t *testing.T) {
	s := newStub(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	gone := "https://" + closed.Addr().String()
	check(t, closed.Close())
	other := newStub(t)
	for name, c := range map[string]struct {
		change func(*Options)
		says   []string
	}{
		"nothing listens": {func(o *Options) { o.URL = gone }, []string{gone, "does Puppet Server run"}},
		"no TLS":          {func(o *Options) { o.URL = "https" + strings.TrimPrefix(plain.URL, "http") }, []string{"does not use TLS"}},
		"another CA":      {func(o *Options) { o.CA = other.options.CA }, []string{other.options.CA + " does not have the CA"}},
		"another name":    {func(o *Options) { o.URL = strings.Replace(o.URL, "localhost", "127.0.0.1", 1) }, []string{"authority.puppetserver.url must have one of the names"}},
		"expired": {func(o *Options) { o.Now = func() time.Time { return time.Now().Add(2 * time.Hour) } },
			[]string{"the client certificate " + s.options.Certificate, "expired", "renew it"}},
		"no status service": {func(*Options) {}, []string{"localhost", "is Puppet Server still starting"}},
	} {
		o := s.options
		c.change(&o)
		a, err := New(o)
		check(t, err)
		_, problems := a.Probe(t.Context())
		if len(problems) != 1 || !errors.Is(problems[0], node.ErrUnavailable) {
			t.Errorf("%s: problems %v, want one", name, problems)
			continue
		}
		for _, text := range c.says {
			if got := problems[0].Error(); !strings.Contains(got, text) || strings.Contains(got, "\n") {
				t.Errorf("%s: says %q, want %q in one line", name, got, text)
			}
		}
		check(t, a.Close())
	}
}

// TLS does not show a certificate of a CA that the server does not accept:
// the server forbids, and no rule would help.
func TestAForeignClientCertificateIsNamed(t *testing.T) {
	n := newNames(t)
	n.answer["GET "+statusPath("web1.test")] = http.StatusForbidden
	forbidden := func(o Options) *ForbiddenError {
		t.Helper()
		a, err := New(o)
		check(t, err)
		t.Cleanup(func() { check(t, a.Close()) })
		_, err = a.Trust(t.Context())
		check(t, err)
		_, err = a.ask(t.Context(), call{method: http.MethodGet, path: statusPath("web1.test")})
		e, ok := errors.AsType[*ForbiddenError](err)
		if !ok {
			t.Fatalf("got %v", err)
		}
		return e
	}
	ours := forbidden(n.stub.options)
	if ours.NotPresented != "" || !strings.Contains(ours.Error(), "add to the rules in auth.conf: { match-request: { path: \"/puppet-ca/v1/certificate_status\"") {
		t.Errorf("got %v", ours)
	}
	o := n.stub.options
	o.Certificate, o.Key = foreignClient(t)
	if got := forbidden(o); got.NotPresented != o.Certificate || !strings.Contains(got.Error(), "the CA did not issue the client certificate "+o.Certificate) {
		t.Errorf("got %v", got)
	}
}

func foreignClient(t *testing.T) (certificate, key string) {
	t.Helper()
	dir := t.TempDir()
	check(t, directory.Create(filepath.Join(dir, "ca"), directory.CreateOptions{Host: "other.test", Key: ca.ECP256}))
	other, err := directory.Open(filepath.Join(dir, "ca"), directory.Options{})
	check(t, err)
	defer func() { check(t, other.Close()) }()
	r := request(t, "client.test", time.Hour)
	r.Serial = other.NewSerial()
	cert, err := other.Sign(t.Context(), r)
	check(t, err)
	text, err := ca.MarshalKeyPEM(r.Key)
	check(t, err)
	certificate, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	check(t, os.WriteFile(key, text, 0o600))
	check(t, os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o644))
	return certificate, key
}
