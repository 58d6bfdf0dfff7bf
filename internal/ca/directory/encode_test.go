package directory

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

func issuer(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Puppet CA: puppet"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign, SubjectKeyId: []byte("the key"),
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func caKeys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	keys := map[string]crypto.Signer{}
	for name, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, crand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = key
	}
	key, err := rsa.GenerateKey(crand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys["RSA"] = key
	return keys
}

// randomEntry makes a revocation, spelled for this package and for x509.
func randomEntry(random *rand.Rand) (ca.Target, x509.RevocationListEntry) {
	serial := make([]byte, 1+random.IntN(20))
	for i := range serial {
		serial[i] = byte(random.Uint32())
	}
	n := new(big.Int).SetBytes(serial)
	reason := node.Reasons()[random.IntN(len(node.Reasons()))]
	code, _ := reason.Code()
	// From 1951 to 2090: RFC 5280 changes the form of times in 2050.
	when := time.Unix(random.Int64N(120*365*24*3600)-19*365*24*3600, 0).In(time.FixedZone("CET", 3600))
	return ca.Target{Serial: node.SerialOf(n), Reason: reason}, x509.RevocationListEntry{SerialNumber: n, RevocationTime: when, ReasonCode: code}
}

// TestCRLIsThatOfX509: whatever is revoked, in whatever steps, the CRL is byte
// for byte that of x509.CreateRevocationList, up to the signature where that is random.
func TestCRLIsThatOfX509(t *testing.T) {
	for name, key := range caKeys(t) {
		t.Run(name, func(t *testing.T) {
			s := signer{issuer: issuer(t, key), key: key}
			for seed := range uint64(60) {
				random := rand.New(rand.NewPCG(seed, 1))
				var list []x509.RevocationListEntry
				var entries entryList
				for range []int{0, 1, 2, 3, 40, 500}[seed%6] {
					target, e := randomEntry(random)
					list = append(list, e)
					if err := entries.revoke(target, e.RevocationTime); err != nil {
						t.Fatal(err)
					}
				}
				number := new(big.Int).Lsh(big.NewInt(random.Int64()), uint(random.IntN(90)))
				from := time.Unix(random.Int64N(1<<32), 0)
				compareCRLs(t, s, number, entries.entries, list, from, from.Add(time.Duration(random.Int64N(1<<60))))
			}
		})
	}
}

func compareCRLs(t *testing.T, s signer, number *big.Int, entries pemfile.Entries, list []x509.RevocationListEntry, from, to time.Time) {
	t.Helper()
	parts, err := s.newCRL(number, entries, from, to)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Concat(parts...)
	want, err := x509.CreateRevocationList(crand.Reader, &x509.RevocationList{
		Number: number, RevokedCertificateEntries: list, ThisUpdate: from, NextUpdate: to,
	}, s.issuer, s.key)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := x509.ParseRevocationList(got)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := x509.ParseRevocationList(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := ours.CheckSignatureFrom(s.issuer); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(ours.RawTBSRevocationList, theirs.RawTBSRevocationList) || ours.SignatureAlgorithm != theirs.SignatureAlgorithm {
		t.Fatalf("%d entries from %v: got\n%x\nwant\n%x", len(list), from, got, want)
	}
	if _, ok := s.key.(*rsa.PrivateKey); ok && !bytes.Equal(got, want) {
		t.Errorf("the CRL differs outside of what is signed:\n%x\nwant\n%x", got, want)
	}
	i := 0
	for e := range entries.All() {
		key, ok := e.Key()
		if wanted, _ := pemfile.KeyOf(list[i].SerialNumber); !ok || key != wanted || !bytes.Equal(e.Raw, theirs.RevokedCertificateEntries[i].Raw) {
			t.Errorf("entry %d is %x, %x, %v", i, e.Raw, key, ok)
		}
		i++
	}
	if i != len(list) {
		t.Errorf("%d entries of %d", i, len(list))
	}
}
