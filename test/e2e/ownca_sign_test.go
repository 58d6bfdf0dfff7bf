package e2e

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/node"
)

// Probe finds no problems, and changes nothing.
func (s *ownCA) check(t *testing.T) {
	before := s.inForce(t)
	got, problems := s.authority(t, s.direct()).Probe(t.Context())
	if want := s.Host.version(t, "puppetserver"); got != want || problems != nil {
		t.Errorf("version %q and %v, want %q and no problems", got, problems, want)
	}
	if after := s.inForce(t); len(after) != len(before) {
		t.Errorf("%d names have certificates, before the check %d", len(after), len(before))
	}
}

// A certificate or a request of another key is found before anything is sent, and stays. A request of our
// key is used.
func (s *ownCA) nameTaken(t *testing.T) {
	a := s.authority(t, s.proxied())
	check(t, warm(t, a))
	taken, stale, ours := newRequest(t), newRequest(t), newRequest(t)
	theirs := s.sign(t, s.authority(t, s.direct()), taken)
	taken.Key = newKey(t)
	s.putCSR(t, stale.Certname, newRequest(t))
	s.putCSR(t, ours.Certname, ours)
	path := filepath.Join(s.CA, "requests", string(stale.Certname)+".pem")
	before := readFile(t, path)
	t.Cleanup(func() { check(t, os.Remove(path)) })
	s.proxy.on(nil)

	if _, err := a.Sign(t.Context(), taken); !errors.Is(err, node.ErrForeignCertificate) {
		t.Errorf("with a certificate under the name: %v", err)
	}
	if _, err := a.Sign(t.Context(), stale); !errors.Is(err, node.ErrForeignRequest) {
		t.Errorf("with a request under the name: %v", err)
	}
	if n := s.proxy.count("PUT") + s.proxy.count("DELETE"); n > 0 {
		t.Errorf("%d calls that change something", n)
	}
	for _, r := range []ca.Request{taken, stale} {
		if found, err := a.Find(t.Context(), query(t, r)); err != nil || found.Issued {
			t.Errorf("found %+v, %v", found, err)
		}
	}
	if got := s.alive(t, taken.Certname); len(got) != 1 || got[0] != node.SerialOf(theirs.SerialNumber) || !bytes.Equal(readFile(t, path), before) {
		t.Errorf("it was cleaned away: %v", got)
	}
	s.proxy.on(nil)
	s.sign(t, a, ours)
	if n := s.proxy.count("PUT /puppet-ca/v1/certificate_request"); n > 0 {
		t.Error("a request of ours was sent again")
	}
}

// putCSR leaves a request at the server, like an agent or a killed espm.
func (s *ownCA) putCSR(t *testing.T, name node.Certname, r ca.Request) {
	t.Helper()
	path := filepath.Join(s.CA, "requests", string(name)+".pem")
	check(t, os.WriteFile(path, makeCSR(t, string(name), r.Key), 0o644))
	uid, gid := s.Host.puppetIDs(t)
	check(t, os.Chown(path, uid, gid))
}

func makeCSR(t *testing.T, name string, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	check(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// The error of a forbidden request has the server's message. The request
// is deleted, so that it does not block the name.
func (s *ownCA) refused(t *testing.T) {
	a := s.authority(t, s.proxied())
	r := newRequest(t)
	s.proxy.on(nil)
	// No Puppet Server accepts this extension from a CSR, whatever its settings.
	exts, err := ca.ParseExtensions(map[string]string{"pp_cli_auth": "true"})
	check(t, err)
	r.Extensions = exts
	_, err = a.Sign(t.Context(), r)
	if !errors.Is(err, node.ErrRefused) || !strings.Contains(err.Error(), "not permitted") {
		t.Errorf("got %v", err)
	}
	if s.holds("requests", r.Certname) {
		t.Error("the refused request blocks the name")
	}
	r.Extensions = nil
	s.sign(t, a, r)
}

// calls of a Sign, in order.
var signCalls = []string{
	"GET /puppet-ca/v1/certificate/n", "GET /puppet-ca/v1/certificate_request/",
	"PUT /puppet-ca/v1/certificate_request/", "PUT /puppet-ca/v1/certificate_status/",
}

// One answer is lost, of each call, before and after the server acted.
func (s *ownCA) signAnswerLost(t *testing.T) {
	for _, call := range signCalls {
		for what, f := range map[string]fault{"before": dropBefore, "after": dropAfter} {
			t.Run(strings.ReplaceAll(call, "/", " ")+"/"+what, func(t *testing.T) {
				a := s.authority(t, s.proxied())
				check(t, warm(t, a))
				r := newRequest(t)
				s.proxy.once(call, f)
				cert, err := a.Sign(t.Context(), r)
				// Only a certificate proves that the server has finished the request.
				lost := strings.HasPrefix(call, "PUT") && (f == dropBefore || strings.Contains(call, "/certificate_request/"))
				if lost != (err != nil) || lost != errors.Is(err, node.ErrUnavailable) {
					t.Errorf("got %v", err)
				}
				s.settles(t, a, r, cert, err)
			})
		}
	}
}

// All answers are lost from a call on.
func (s *ownCA) signSilence(t *testing.T) {
	for i, call := range append(signCalls, "GET /puppet-ca/v1/certificate/n") {
		for what, f := range map[string]fault{"before": dropBefore, "after": dropAfter} {
			t.Run(strings.ReplaceAll(call, "/", " ")+"/"+what, func(t *testing.T) {
				a := s.authority(t, s.proxied())
				check(t, warm(t, a))
				s.silence(t, a, call, f, i < len(signCalls)) // the last one is the second of its kind
			})
		}
	}
}

func (s *ownCA) silence(t *testing.T, a *puppetserver.Authority, call string, f fault, passed bool) {
	t.Helper()
	r := newRequest(t)
	silent := false
	s.proxy.on(func(req *http.Request, _ []byte) fault {
		passed = passed || req.Method == http.MethodPut
		silent = silent || passed && strings.HasPrefix(req.Method+" "+req.URL.Path, call)
		if silent {
			return f
		}
		return pass
	})
	cert, err := a.Sign(t.Context(), r)
	if err == nil || !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	s.settles(t, a, r, cert, err)
}

// warm fetches chain and CRL, so that the test's faults do not meet these calls.
func warm(t *testing.T, a *puppetserver.Authority) error {
	_, err := a.Trust(t.Context())
	return err
}

// settles settles an issue like the registry. It checks that
// each certificate of the CA is known or revoked, and that the name is free again.
func (s *ownCA) settles(t *testing.T, a *puppetserver.Authority, r ca.Request, cert *x509.Certificate, err error) {
	t.Helper()
	s.proxy.on(nil)
	if err != nil {
		var found ca.Found
		waitFor(t, time.Minute, "the server can't be at it any more", func() (err error) {
			found, err = a.Find(t.Context(), query(t, r))
			return err
		})
		alive := s.alive(t, r.Certname)
		if found.Issued != (len(alive) > 0) {
			t.Errorf("found %+v, the CA has %v", found, alive)
		}
		if found.Issued {
			_, err := a.Revoke(t.Context(), []ca.Target{{Serial: found.Serial, Certname: r.Certname}})
			check(t, err)
		}
		r.Key = newKey(t)
		cert = s.sign(t, a, r)
	}
	if got := s.alive(t, r.Certname); len(got) != 1 || got[0] != node.SerialOf(cert.SerialNumber) {
		t.Errorf("in force are %v, want %X alone", got, cert.SerialNumber)
	}
	if s.holds("requests", r.Certname) {
		t.Error("a request is left")
	}
}
