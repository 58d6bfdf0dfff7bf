package e2e

import (
	"bytes"
	"crypto/x509"
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

const cleanCall = "PUT /puppet-ca/v1/clean"

// batch signs some certificates.
func (s *ownCA) batch(t *testing.T, a *puppetserver.Authority, n int) (targets []ca.Target, certs []*x509.Certificate) {
	t.Helper()
	for range n {
		cert := s.sign(t, a, newRequest(t))
		targets, certs = append(targets, targetOf(cert)), append(certs, cert)
	}
	return targets, certs
}

// revoked checks that each target is revoked and has its receipt.
func (s *ownCA) revoked(t *testing.T, targets []ca.Target, receipts []node.Receipt) {
	t.Helper()
	if len(receipts) != len(targets) {
		t.Fatalf("%d receipts for %d", len(receipts), len(targets))
	}
	for i, target := range targets {
		if receipts[i].Serial != target.Serial || receipts[i].CRLNumber == "" {
			t.Errorf("receipt %+v for %s", receipts[i], target.Serial)
		}
		if alive := s.alive(t, target.Certname); alive != nil || s.holds("signed", target.Certname) {
			t.Errorf("%s: in force are %v", target.Certname, alive)
		}
	}
}

// One answer is lost, of each call, before and after the server acted.
func (s *ownCA) revokeAnswerLost(t *testing.T) {
	for _, call := range []string{"GET /puppet-ca/v1/certificate/n", cleanCall, "GET /puppet-ca/v1/certificate_revocation_list"} {
		for what, f := range map[string]fault{"before": dropBefore, "after": dropAfter} {
			t.Run(strings.ReplaceAll(call, "/", " ")+"/"+what, func(t *testing.T) {
				a := s.authority(t, s.proxied())
				targets, _ := s.batch(t, a, 3)
				s.proxy.once(call, f)
				receipts, err := a.Revoke(t.Context(), targets)
				if lost := call == cleanCall && f == dropBefore; lost != errors.Is(err, node.ErrUnavailable) || lost != (err != nil) {
					t.Errorf("got %v", err)
				}
				if err != nil {
					receipts, err = a.Revoke(t.Context(), targets)
					check(t, err)
				}
				s.revoked(t, targets, receipts)
			})
		}
	}
}

// If the server can't revoke one name, the other names of the
// batch get their receipts in the same call.
func (s *ownCA) revokeBadName(t *testing.T) {
	a := s.authority(t, s.proxied())
	targets, _ := s.batch(t, a, 9)
	bad := targets[5]
	// As 8.x does with a name whose inventory rows have all expired.
	s.proxy.on(func(r *http.Request, body []byte) fault {
		if strings.HasPrefix(r.Method+" "+r.URL.Path, cleanCall) && bytes.Contains(body, []byte(bad.Certname)) {
			return fail500
		}
		return pass
	})
	for round := range 2 {
		receipts, err := a.Revoke(t.Context(), targets)
		if err == nil || errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), string(bad.Certname)) {
			t.Errorf("got %v", err)
		}
		good := append(targets[:5:5], targets[6:]...)
		if receipts[5].Serial != "" {
			t.Errorf("a receipt for nothing: %+v", receipts[5])
		}
		s.revoked(t, good, append(receipts[:5:5], receipts[6:]...))
		if n := s.proxy.count(cleanCall); round == 1 && n > 10 {
			t.Errorf("%d calls; the second time the bad name is known", n)
		}
	}
	s.proxy.on(nil)
	receipts, err := a.Revoke(t.Context(), targets)
	check(t, err)
	s.revoked(t, targets, receipts)
}

// If a revocation breaks off, the revoked targets still get their
// receipts. The same holds if a file in signed/ is no certificate.
func (s *ownCA) revokeBreaksOff(t *testing.T) {
	a := s.authority(t, s.proxied())
	targets, _ := s.batch(t, a, 140) // more than one call takes
	calls := 0
	s.proxy.on(func(r *http.Request, _ []byte) fault {
		if strings.HasPrefix(r.Method+" "+r.URL.Path, cleanCall) {
			if calls++; calls == 2 {
				return dropBefore
			}
		}
		return pass
	})
	receipts, err := a.Revoke(t.Context(), targets)
	if !errors.Is(err, node.ErrUnavailable) || len(receipts) != len(targets) || receipts[0].Serial == "" || receipts[139].Serial != "" {
		t.Fatalf("got %v, first %+v, last %+v", err, receipts[0], receipts[139])
	}
	path := filepath.Join(s.CA, "signed", string(targets[130].Certname)+".pem")
	good := readFile(t, path)
	check(t, os.WriteFile(path, []byte("-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n"), 0o644))
	receipts, err = a.Revoke(t.Context(), targets)
	if err == nil || receipts[130].Serial != "" || receipts[129].Serial == "" || receipts[139].Serial == "" {
		t.Errorf("got %v beside a file that is no certificate", err)
	}
	check(t, os.WriteFile(path, good, 0o644))
	receipts, err = a.Revoke(t.Context(), targets)
	check(t, err)
	s.revoked(t, targets, receipts)
}

// A late revocation does not revoke a newer certificate of the name,
// whoever signed it.
func (s *ownCA) revokeSparesASuccessor(t *testing.T) {
	a := s.authority(t, s.proxied())
	targets, _ := s.batch(t, a, 2)
	s.proxy.on(nil)
	first := targets[0]
	check(t, os.Remove(filepath.Join(s.CA, "signed", string(first.Certname)+".pem"))) // as an admin does by mistake
	r := newRequest(t)
	r.Certname = first.Certname
	second := s.sign(t, a, r)

	receipts, err := a.Revoke(t.Context(), targets)
	refused, told := errors.AsType[*ca.RefusedError](err)
	if !told || !errors.Is(refused.Targets[0], node.ErrForeignCertificate) || refused.Targets[1] != nil || receipts[0].Serial != "" || receipts[1].Serial == "" {
		t.Errorf("got %v, %+v", err, receipts)
	}
	if alive := s.alive(t, first.Certname); len(alive) != 2 || !s.holds("signed", first.Certname) {
		t.Errorf("in force are %v; %X is the successor", alive, second.SerialNumber)
	}
}

// A server without /clean gets one revocation after the other, and the names are free afterwards.
func (s *ownCA) revokeWithoutClean(t *testing.T) {
	a := s.authority(t, s.proxied())
	targets, _ := s.batch(t, a, 3)
	s.proxy.on(func(r *http.Request, _ []byte) fault {
		if strings.HasPrefix(r.Method+" "+r.URL.Path, cleanCall) {
			return fail404
		}
		return pass
	})
	defer s.proxy.on(nil)
	receipts, err := a.Revoke(t.Context(), targets)
	check(t, err)
	s.revoked(t, targets, receipts)
	r := newRequest(t)
	r.Certname = targets[0].Certname
	s.sign(t, a, r)
}

// The error of a client without a permission has the missing rule, and the server
// accepts that rule.
func (s *ownCA) forbidden(t *testing.T) {
	a := s.authority(t, s.direct())
	o, r := s.clientOf(t, a, time.Hour)
	weak := s.authority(t, o)
	_, problems := weak.Probe(t.Context())
	if len(problems) != 2 {
		t.Fatalf("%d problems, want those of certificate_status and clean: %v", len(problems), problems)
	}
	var rules []string
	for _, problem := range problems {
		forbidden := (*puppetserver.ForbiddenError)(nil)
		if !errors.As(problem, &forbidden) || forbidden.Client != string(r.Certname) {
			t.Fatalf("got %v", problem)
		}
		rules = append(rules, forbidden.Rule)
	}
	mine := newRequest(t)
	if _, err := weak.Sign(t.Context(), mine); !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), rules[0]) {
		t.Errorf("Sign: %v", err)
	}
	if _, err := a.Find(t.Context(), query(t, mine)); err != nil { // it signs what is left, to be revoked
		t.Error(err)
	}
	auth := filepath.Join(s.Server, "ps/conf.d/auth.conf")
	before := readFile(t, auth)
	check(t, os.WriteFile(auth, bytes.Replace(before, []byte("rules: ["), []byte("rules: [\n"+strings.Join(rules, "\n")+"\n"), 1), 0o644))
	s.server.reload(t)
	if _, problems := weak.Probe(t.Context()); problems != nil {
		t.Errorf("with the rules: %v", problems)
	}
	cert := s.sign(t, weak, newRequest(t))
	receipts, err := weak.Revoke(t.Context(), []ca.Target{targetOf(cert)})
	check(t, err)
	s.revoked(t, []ca.Target{targetOf(cert)}, receipts)
	check(t, os.WriteFile(auth, before, 0o644)) // for the next start
}

// clientOf returns options of a client that has a certificate of its own.
func (s *ownCA) clientOf(t *testing.T, a *puppetserver.Authority, ttl time.Duration) (puppetserver.Options, ca.Request) {
	t.Helper()
	r := newRequest(t)
	r.TTL = ttl
	o := s.direct()
	dir := t.TempDir()
	o.Certificate, o.Key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	s.writeClient(t, o, s.sign(t, a, r), r)
	return o, r
}

func (s *ownCA) writeClient(t *testing.T, o puppetserver.Options, cert *x509.Certificate, r ca.Request) {
	t.Helper()
	key, err := ca.MarshalKeyPEM(r.Key)
	check(t, err)
	check(t, os.WriteFile(o.Key, key, 0o600))
	check(t, os.WriteFile(o.Certificate, encodePEM(cert), 0o644))
}

// An expired client certificate is named as the reason, by espm's clock before
// anything is sent.
func (s *ownCA) clientExpired(t *testing.T) {
	o, r := s.clientOf(t, s.authority(t, s.direct()), time.Hour)
	o.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	_, err := s.authority(t, o).Sign(t.Context(), newRequest(t))
	if !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "expired") || !strings.Contains(err.Error(), string(r.Certname)) {
		t.Errorf("got %v", err)
	}
}

// A renewed client certificate is used without a restart.
func (s *ownCA) clientRenewed(t *testing.T) {
	a := s.authority(t, s.direct())
	o, r := s.clientOf(t, a, time.Hour)
	client := s.authority(t, o)
	check(t, warm(t, client))
	_, err := a.Revoke(t.Context(), []ca.Target{targetOf(parseCertificate(t, o.Certificate))})
	check(t, err)
	s.sign(t, a, newRequest(t)) // the server still serves
	r.Key = newKey(t)
	s.writeClient(t, o, s.sign(t, a, r), r)
	check(t, os.Chtimes(o.Certificate, time.Time{}, time.Now().Add(time.Second)))
	if _, problems := client.Probe(t.Context()); len(problems) != 2 { // it may not sign, but it gets in
		t.Errorf("got %v", problems)
	}
}

func parseCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(pemBlock(t, readFile(t, path)))
	check(t, err)
	return cert
}
