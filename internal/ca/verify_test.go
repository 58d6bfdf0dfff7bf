package ca_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
)

func TestWantedCheck(t *testing.T) {
	key, err := ca.GenerateKey(ca.ECP256)
	if err != nil {
		t.Fatal(err)
	}
	exts, err := ca.ParseExtensions(map[string]string{"pp_role": "web"})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: now.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1},
	}
	asked := ca.Request{Certname: "web1.test", Serial: "0ABC", Key: key, DNSAltNames: []string{"www.test"}, Extensions: exts, TTL: time.Hour}
	issue := func(r ca.Request, change func(*x509.Certificate)) *x509.Certificate {
		t.Helper()
		template, err := ca.Leaf(r, now, issuer)
		if err != nil {
			t.Fatal(err)
		}
		change(template)
		der, err := x509.CreateCertificate(rand.Reader, template, issuer, r.PublicKey(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	wanted, err := asked.Wanted()
	if err != nil {
		t.Fatal(err)
	}
	same := func(*x509.Certificate) {}
	if err := wanted.Check(issue(asked, same)); err != nil {
		t.Errorf("the certificate that was asked for: %v", err)
	}
	anyTTL := wanted
	anyTTL.TTL = 0
	if err := anyTTL.Check(issue(asked, same)); err != nil {
		t.Errorf("without a TTL: %v", err)
	}
	other, err := ca.GenerateKey(ca.ECP256)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, noExts := asked, asked
	otherKey.Key, noExts.Extensions = other, nil
	short := func(c *x509.Certificate) { c.NotAfter = now.Add(30 * time.Second) }
	for name, test := range map[string]struct {
		wanted ca.Wanted
		cert   *x509.Certificate
		says   string
	}{
		"key":        {wanted, issue(otherKey, same), "another key"},
		"name":       {wanted, issue(asked, func(c *x509.Certificate) { c.RawSubject, c.Subject = nil, pkix.Name{CommonName: "web2.test"} }), "web2.test"},
		"DNS name":   {wanted, issue(asked, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "evil.test") }), "evil.test"},
		"no name":    {wanted, issue(asked, func(c *x509.Certificate) { c.DNSNames = c.DNSNames[:1] }), "DNS names"},
		"address":    {wanted, issue(asked, func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.test"} }), "not DNS names"},
		"extensions": {wanted, issue(noExts, same), "extensions"},
		"CA":         {wanted, issue(asked, func(c *x509.Certificate) { c.IsCA = true }), "CA's rights"},
		"longer":     {wanted, issue(asked, func(c *x509.Certificate) { c.NotAfter = now.Add(2 * time.Hour) }), "a life of 2h"},
		"shorter":    {wanted, issue(asked, short), "a life of 30s"},
		"to revoke":  {anyTTL, issue(asked, short), "a life of 30s"},
	} {
		if err := test.wanted.Check(test.cert); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %q", name, err, test.says)
		}
	}
}
