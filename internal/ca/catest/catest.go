// Package catest is the test suite that every authority passes. It uses only the
// interface, so it also runs against a real Puppet Server.
package catest

import (
	"context"
	"crypto"
	"crypto/x509"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Options describe what the suite can't learn from the authority.
type Options struct {
	IgnoresTTL bool // the authority gives all certificates the same TTL
	// Now is the authority's clock; nil: time.Now.
	Now func() time.Time
}

// Run runs the suite. open returns an authority that nothing else uses
// meanwhile. It is called once for each test. The authority may have certificates already.
func Run(t *testing.T, o Options, open func(t *testing.T) ca.Authority) {
	if o.Now == nil {
		o.Now = time.Now
	}
	for name, test := range map[string]func(*suite){
		"Traits":               (*suite).traits,
		"SignKey":              (*suite).signKey,
		"SignCSR":              (*suite).signCSR,
		"SignRefuses":          (*suite).signRefuses,
		"DefaultTTL":           (*suite).defaultTTL,
		"FindIssued":           (*suite).findIssued,
		"FindUnknown":          (*suite).findUnknown,
		"RevokeOnce":           (*suite).revokeOnce,
		"RevokeTwice":          (*suite).revokeTwice,
		"RevokeBatch":          (*suite).revokeBatch,
		"RevokeKeepsSuccessor": (*suite).revokeKeepsSuccessor,
		"CancelledBefore":      (*suite).cancelledBefore,
		"Concurrency":          (*suite).concurrency,
	} {
		t.Run(name, func(t *testing.T) {
			authority := open(t)
			test(&suite{T: t, Options: o, Traits: authority.Traits(), ca: authority})
		})
	}
}

type suite struct {
	*testing.T
	Options
	ca.Traits
	ca ca.Authority
}

func (s *suite) signKey() {
	for _, key := range []crypto.Signer{ecKey(s.T), rsaKey()} {
		r := s.request(s.name(), key)
		r.DNSAltNames = []string{"a." + string(r.Certname), "b." + string(r.Certname)}
		r.Extensions = extensions(s.T, map[string]string{"pp_role": "wéb", "1.3.6.1.4.1.34380.1.2.7": "own", "pp_auth_role": "x"})
		s.checkLeaf(s.sign(r), r)
	}
}

func (s *suite) signCSR() {
	for _, key := range []crypto.Signer{ecKey(s.T), rsaKey()} {
		name := s.name()
		csr := makeCSR(s.T, key, name, []string{string(name), "alias." + string(name)})
		r := s.request(name, nil)
		r.DNSAltNames = []string{"alias." + string(name)}
		r, err := r.WithCSR(csr)
		if err != nil {
			s.Fatal(err)
		}
		s.checkLeaf(s.sign(r), r)
	}
}

func (s *suite) signRefuses() {
	r := s.request("../x", ecKey(s.T))
	if _, err := s.ca.Sign(s.Context(), r); err == nil {
		s.Error("signed for the certname ../x")
	}
	if s.IgnoresTTL {
		return
	}
	r = s.request(s.name(), ecKey(s.T))
	r.TTL = time.Second
	if _, err := s.ca.Sign(s.Context(), r); err == nil {
		s.Error("signed for a second")
	}
}

func (s *suite) defaultTTL() {
	r := s.request(s.name(), ecKey(s.T))
	r.TTL = 0
	cert := s.sign(r)
	if most := s.Now().Add(ca.DefaultTTL + time.Minute); cert.NotAfter.After(most) {
		s.Errorf("a TTL of 0 lasts until %v, later than %v", cert.NotAfter, most)
	}
	if issuer := s.chain()[0]; cert.NotAfter.After(issuer.NotAfter) {
		s.Errorf("outlives its CA: %v, later than %v", cert.NotAfter, issuer.NotAfter)
	}
}

func (s *suite) findIssued() {
	r := s.request(s.name(), ecKey(s.T))
	cert := s.sign(r)
	found, err := s.ca.Find(s.Context(), s.query(r))
	if err != nil {
		s.Fatal(err)
	}
	if !found.Issued || found.Certificate == nil || !found.Certificate.Equal(cert) {
		s.Fatalf("Find returned %+v, want the certificate", found)
	}
	if found.Serial != node.SerialOf(cert.SerialNumber) {
		s.Errorf("serial %s, want %X", found.Serial, cert.SerialNumber)
	}
	// Find must not return a newer certificate of the same name.
	second := s.request(r.Certname, ecKey(s.T))
	if s.RevokesByName {
		s.revoke(cert)
	}
	later := s.sign(second)
	found, err = s.ca.Find(s.Context(), s.query(r))
	if err != nil {
		s.Fatal(err)
	}
	if found.Certificate != nil && found.Certificate.Equal(later) {
		s.Error("Find returned the newer certificate for the query of the first one")
	}
	if !s.ChoosesSerial && (!found.Issued || found.Serial != r.Serial) {
		s.Errorf("Find returned %+v of a serial that was used", found)
	}
}

func (s *suite) findUnknown() {
	r := s.request(s.name(), ecKey(s.T))
	found, err := s.ca.Find(s.Context(), s.query(r))
	if err != nil || found.Issued {
		s.Errorf("Find of nothing: %+v, %v", found, err)
	}
}

func (s *suite) revokeOnce() {
	cert := s.sign(s.request(s.name(), ecKey(s.T)))
	before := s.crl()
	s.checkListed(cert, "")
	receipts := s.revoke(cert)
	after := s.crl()
	s.checkListed(cert, after.Number.String())
	s.checkReceipts(receipts, after, cert)
	if after.Number.Cmp(before.Number) <= 0 {
		s.Errorf("CRL number %d after %d, must rise", after.Number, before.Number)
	}
	if got, want := len(after.RevokedCertificateEntries), len(before.RevokedCertificateEntries)+1; got != want {
		s.Errorf("%d entries, want %d", got, want)
	}
	if now := s.Now(); after.ThisUpdate.After(now) || !after.NextUpdate.After(now) {
		s.Errorf("CRL from %v to %v does not hold now, %v", after.ThisUpdate, after.NextUpdate, now)
	}
}

func (s *suite) revokeTwice() {
	cert := s.sign(s.request(s.name(), ecKey(s.T)))
	s.revoke(cert)
	again := s.revoke(cert)
	s.checkReceipts(again, s.crl(), cert)
}

func (s *suite) revokeBatch() {
	var certs []*x509.Certificate
	for range 5 {
		certs = append(certs, s.sign(s.request(s.name(), ecKey(s.T))))
	}
	s.revoke(certs[0])
	batch := append(slices.Clone(certs), certs[1]) // one revoked before, one named twice
	s.checkReceipts(s.revoke(batch...), s.crl(), batch...)
	if receipts := s.revoke(); len(receipts) != 0 {
		s.Errorf("%d receipts for nothing", len(receipts))
	}
}

// traits checks that the authority behaves as its traits say.
func (s *suite) traits() {
	if none := s.ca.NewSerial() == ""; none != s.ChoosesSerial {
		s.Errorf("NewSerial gives none: %v, ChoosesSerial: %v", none, s.ChoosesSerial)
	}
	wrapped := struct{ ca.Authority }{s.ca}
	if got := wrapped.Traits(); got.RevokesByName != s.RevokesByName || !slices.Equal(got.Protected, s.Protected) {
		s.Errorf("in a wrapper the traits are %+v, not %+v", got, s.Traits)
	}
}

// revokeKeepsSuccessor checks that a late revocation of a certificate does not revoke its
// successor. An authority that revokes by name has revoked the first one already; the late call is the second.
func (s *suite) revokeKeepsSuccessor() {
	name := s.name()
	first := s.sign(s.request(name, ecKey(s.T)))
	if s.RevokesByName {
		s.revoke(first)
	}
	second := s.request(name, ecKey(s.T))
	cert := s.sign(second)
	s.revoke(first)
	if count(s.crl(), cert) != 0 {
		s.Error("the successor is on the CRL")
	}
	found, err := s.ca.Find(s.Context(), s.query(second))
	if err != nil || found.Certificate == nil {
		s.Errorf("the successor's certificate is gone: %+v, %v", found, err)
	}
}

func (s *suite) cancelledBefore() {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := s.ca.Sign(ctx, s.request(s.name(), ecKey(s.T))); err == nil {
		s.Error("Sign ignored that its context had ended")
	}
	if _, err := s.ca.Revoke(ctx, []ca.Target{{Serial: "0A0B", Certname: s.name()}}); err == nil {
		s.Error("Revoke ignored that its context had ended")
	}
	if _, err := s.ca.Listed(ctx, "0A0B"); err == nil {
		s.Error("Listed ignored that its context had ended")
	}
}

func (s *suite) concurrency() {
	const workers, each = 8, 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	var revoked, valid []*x509.Certificate
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				cert, err := s.ca.Sign(s.Context(), s.request(s.name(), ecKey(s.T)))
				if err != nil {
					s.Error(err)
					return
				}
				even := (w+i)%2 == 0
				if even {
					if _, err := s.ca.Revoke(s.Context(), targets(cert)); err != nil {
						s.Error(err)
						return
					}
				}
				if _, err := s.ca.Trust(s.Context()); err != nil {
					s.Error(err)
				}
				mu.Lock()
				if even {
					revoked = append(revoked, cert)
				} else {
					valid = append(valid, cert)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	crl := s.crl()
	serials := make(map[string]bool)
	for _, cert := range revoked {
		serials[cert.SerialNumber.String()] = true
		if n := count(crl, cert); n != 1 {
			s.Errorf("%s is on the CRL %d times, want once", cert.Subject, n)
		}
	}
	for _, cert := range valid {
		serials[cert.SerialNumber.String()] = true
		if count(crl, cert) != 0 {
			s.Errorf("%s is on the CRL", cert.Subject)
		}
	}
	if len(serials) != workers*each {
		s.Errorf("%d serials for %d certificates", len(serials), workers*each)
	}
}

// checkReceipts checks the receipts, and that the CRL has exactly one entry for each certificate.
func (s *suite) checkReceipts(receipts []node.Receipt, crl *x509.RevocationList, certs ...*x509.Certificate) {
	s.Helper()
	if len(receipts) != len(certs) {
		s.Fatalf("%d receipts for %d certificates", len(receipts), len(certs))
	}
	for i, cert := range certs {
		if n := count(crl, cert); n != 1 {
			s.Errorf("%s is on the CRL %d times, want once", cert.Subject, n)
		}
		if want := node.SerialOf(cert.SerialNumber); receipts[i].Serial != want {
			s.Errorf("receipt %d is for %s, want %s", i, receipts[i].Serial, want)
		}
		number, ok := new(big.Int).SetString(receipts[i].CRLNumber, 10)
		if !ok || number.Cmp(crl.Number) > 0 {
			s.Errorf("receipt names CRL %q, now there is %d", receipts[i].CRLNumber, crl.Number)
		}
		if receipts[i].PublishedAt.IsZero() {
			s.Error("receipt without a time")
		}
	}
}

func (s *suite) checkListed(cert *x509.Certificate, want string) {
	s.Helper()
	if number, err := s.ca.Listed(s.Context(), node.SerialOf(cert.SerialNumber)); err != nil || number != want {
		s.Errorf("%s is on CRL %q, %v, want %q", cert.Subject, number, err, want)
	}
}

func count(crl *x509.RevocationList, cert *x509.Certificate) int {
	n := 0
	for _, e := range crl.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			n++
		}
	}
	return n
}
