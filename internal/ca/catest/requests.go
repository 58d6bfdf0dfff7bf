package catest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

func (s *suite) sign(r ca.Request) *x509.Certificate {
	s.Helper()
	cert, err := s.ca.Sign(s.Context(), r)
	if err != nil {
		s.Fatal(err)
	}
	return cert
}

func (s *suite) revoke(certs ...*x509.Certificate) []node.Receipt {
	s.Helper()
	receipts, err := s.ca.Revoke(s.Context(), targets(certs...))
	if err != nil {
		s.Fatal(err)
	}
	return receipts
}

func targets(certs ...*x509.Certificate) []ca.Target {
	var out []ca.Target
	for _, cert := range certs {
		out = append(out, ca.Target{
			Serial:   node.SerialOf(cert.SerialNumber),
			Certname: node.Certname(cert.Subject.CommonName),
		})
	}
	return out
}

func (s *suite) trust() ca.Trust {
	s.Helper()
	trust, err := s.ca.Trust(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return trust
}

// chain returns the CA's certificates, the signing CA's first.
func (s *suite) chain() []*x509.Certificate {
	s.Helper()
	chain, err := pemfile.Certificates(s.trust().CertificatesPEM)
	if err != nil {
		s.Fatal(err)
	}
	return chain
}

// crl returns the signing CA's CRL, which comes first.
func (s *suite) crl() *x509.RevocationList {
	s.Helper()
	block, _ := pem.Decode(s.trust().CRLsPEM)
	if block == nil {
		s.Fatal("Trust has no CRL")
	}
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		s.Fatal(err)
	}
	if err := crl.CheckSignatureFrom(s.chain()[0]); err != nil {
		s.Fatalf("the first CRL is not the signing CA's: %v", err)
	}
	return crl
}

func (s *suite) request(name node.Certname, key crypto.Signer) ca.Request {
	return ca.Request{Certname: name, Serial: s.ca.NewSerial(), Key: key, TTL: time.Hour}
}

func (s *suite) query(r ca.Request) ca.Query {
	s.Helper()
	hash, err := ca.KeyHash(r.PublicKey())
	if err != nil {
		s.Fatal(err)
	}
	return ca.Query{Certname: r.Certname, Serial: r.Serial, KeyHash: hash}
}

// name returns a certname that no test used before.
func (s *suite) name() node.Certname {
	return node.Certname(strings.ToLower("n" + rand.Text()[:16] + ".example.com"))
}

func ecKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rsaKey returns the same key for all tests, as generating one is slow.
var rsaKey = sync.OnceValue(func() crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func extensions(t *testing.T, values map[string]string) []ca.Extension {
	t.Helper()
	exts, err := ca.ParseExtensions(values)
	if err != nil {
		t.Fatal(err)
	}
	return exts
}

func makeCSR(t *testing.T, key crypto.Signer, name node.Certname, names []string) *x509.CertificateRequest {
	t.Helper()
	role, err := asn1.MarshalWithParams("db", "utf8")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: string(name)},
		DNSNames: names,
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 34380, 1, 1, 13}, Value: role},
		},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ca.ParseCSR(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), name)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
