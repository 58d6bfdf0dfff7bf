package catest

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
)

// profile lists the extensions that every certificate of Puppet Server has, and
// whether they are critical.
var profile = []struct {
	name     string
	id       asn1.ObjectIdentifier
	critical bool
}{
	{"subject alternative name", asn1.ObjectIdentifier{2, 5, 29, 17}, false},
	{"Netscape comment", asn1.ObjectIdentifier{2, 16, 840, 1, 113730, 1, 13}, false},
	{"authority key identifier", asn1.ObjectIdentifier{2, 5, 29, 35}, false},
	{"subject key identifier", asn1.ObjectIdentifier{2, 5, 29, 14}, false},
	{"basic constraints", asn1.ObjectIdentifier{2, 5, 29, 19}, true},
	{"extended key usage", asn1.ObjectIdentifier{2, 5, 29, 37}, true},
	{"key usage", asn1.ObjectIdentifier{2, 5, 29, 15}, true},
}

// checkLeaf checks that a certificate is what its request asks for.
func (s *suite) checkLeaf(cert *x509.Certificate, r ca.Request) {
	s.Helper()
	s.checkIdentity(cert, r)
	s.checkExtensions(cert, r)
	s.checkValidity(cert, r.TTL)
	s.checkTrusted(cert)
}

func (s *suite) checkIdentity(cert *x509.Certificate, r ca.Request) {
	s.Helper()
	want, err := ca.CommonName(string(r.Certname))
	if err != nil {
		s.Fatal(err)
	}
	if !bytes.Equal(cert.RawSubject, want) {
		s.Errorf("subject %x, want CN=%s as a UTF8String alone", cert.RawSubject, r.Certname)
	}
	if !s.ChoosesSerial {
		if n, ok := r.Serial.Int(); !ok || cert.SerialNumber.Cmp(n) != 0 {
			s.Errorf("serial %X, want %s", cert.SerialNumber, r.Serial)
		}
	}
	got, err := ca.KeyHash(cert.PublicKey)
	if err != nil {
		s.Fatal(err)
	}
	if want := s.query(r).KeyHash; got != want {
		s.Errorf("certifies the key %s, want %s", got, want)
	}
	names := append([]string{string(r.Certname)}, r.DNSAltNames...)
	if sorted := slices.Sorted(slices.Values(cert.DNSNames)); !slices.Equal(sorted, slices.Sorted(slices.Values(names))) {
		s.Errorf("DNS names %q, want %q", cert.DNSNames, names)
	}
	if len(cert.IPAddresses)+len(cert.EmailAddresses)+len(cert.URIs) > 0 {
		s.Error("names other than DNS names")
	}
}

func (s *suite) checkExtensions(cert *x509.Certificate, r ca.Request) {
	s.Helper()
	for _, want := range profile {
		i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(want.id) })
		switch {
		case i < 0:
			s.Errorf("lacks the %s", want.name)
		case cert.Extensions[i].Critical != want.critical:
			s.Errorf("%s: critical %v, want %v", want.name, cert.Extensions[i].Critical, want.critical)
		}
	}
	if got, want := len(cert.Extensions), len(profile)+len(r.Extensions); got != want {
		s.Errorf("%d extensions, want %d", got, want)
	}
	got := ca.Extensions(cert)
	if !slices.EqualFunc(got, r.Extensions, func(a, b ca.Extension) bool { return a.ID.Equal(b.ID) && a.Value == b.Value }) {
		s.Errorf("Puppet's extensions %v, want %v", got, r.Extensions)
	}
	if cert.IsCA || !cert.BasicConstraintsValid {
		s.Error("basic constraints must say CA:FALSE")
	}
	if want := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}; !slices.Equal(cert.ExtKeyUsage, want) {
		s.Errorf("extended key usage %v, want server and client", cert.ExtKeyUsage)
	}
	if cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		s.Error("the key usage lacks digitalSignature")
	}
	if _, ok := cert.PublicKey.(*rsa.PublicKey); ok && cert.KeyUsage&x509.KeyUsageKeyEncipherment == 0 {
		s.Error("an RSA key's usage lacks keyEncipherment")
	}
	if keyID, err := ca.KeyID(cert.PublicKey); err != nil || !bytes.Equal(cert.SubjectKeyId, keyID) {
		s.Errorf("subject key identifier %x, want %x", cert.SubjectKeyId, keyID)
	}
}

func (s *suite) checkValidity(cert *x509.Certificate, ttl time.Duration) {
	s.Helper()
	now, slack := s.Now(), time.Minute
	if off := cert.NotBefore.Sub(now.Add(-ca.Backdate)).Abs(); off > slack {
		s.Errorf("not before %v, want a day before %v", cert.NotBefore, now)
	}
	if off := cert.NotAfter.Sub(now.Add(ttl)).Abs(); !s.IgnoresTTL && off > slack {
		s.Errorf("not after %v, want %v after %v", cert.NotAfter, ttl, now)
	}
}

func (s *suite) checkTrusted(cert *x509.Certificate) {
	s.Helper()
	chain := s.chain()
	if !bytes.Equal(cert.AuthorityKeyId, chain[0].SubjectKeyId) {
		s.Errorf("authority key identifier %x, want %x", cert.AuthorityKeyId, chain[0].SubjectKeyId)
	}
	if err := cert.CheckSignatureFrom(chain[0]); err != nil {
		s.Error(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for i, c := range chain {
		if i == len(chain)-1 {
			roots.AddCert(c)
		} else {
			between.AddCert(c)
		}
	}
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: s.Now(), DNSName: cert.Subject.CommonName,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		s.Error(err)
	}
}
