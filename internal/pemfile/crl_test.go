package pemfile

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestCRLs(t *testing.T) {
	cert, key := issuer(t)
	make := func(extensions ...pkix.Extension) *pem.Block {
		t.Helper()
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(7), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), ExtraExtensions: extensions,
		}, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return &pem.Block{Type: CRL, Bytes: der}
	}
	whole, err := ParseCRL(make())
	if err != nil || whole.CheckWhole() != nil || NumberOf(whole).Int64() != 7 {
		t.Fatalf("a whole CRL: %v, number %v", err, whole)
	}
	// issuingDistributionPoint: the CRL covers a part of the certificates.
	part, err := ParseCRL(make(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}))
	if err != nil || part.CheckWhole() == nil {
		t.Errorf("a CRL for a part of the certificates: %v, taken for whole", err)
	}
	if _, err := ParseCRL(&pem.Block{Type: Certificate, Bytes: whole.Raw}); err == nil {
		t.Error("a block of another type is a CRL")
	}
	if n := NumberOf(&RevocationList{}); n.Sign() != 0 {
		t.Errorf("a CRL without a number has number %v", n)
	}
}

func TestSerials(t *testing.T) {
	cert, key := issuer(t)
	var entries []x509.RevocationListEntry
	long := new(big.Int).Lsh(big.NewInt(5), 100)
	for _, n := range []*big.Int{big.NewInt(700), big.NewInt(3), big.NewInt(-5), long, new(big.Int).Lsh(long, 40), big.NewInt(1 << 60), big.NewInt(3)} {
		entries = append(entries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(7), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), RevokedCertificateEntries: entries,
	}, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	list, err := ParseCRL(&pem.Block{Type: CRL, Bytes: der})
	if err != nil {
		t.Fatal(err)
	}
	set, repeated := list.Entries.Serials()
	for n, want := range map[int64]bool{700: true, 3: true, 1 << 60: true, -5: false, 5: false, 0: false, 701: false} {
		if set.Has(big.NewInt(n)) != want {
			t.Errorf("%d is in the set: %v", n, !want)
		}
	}
	if !set.Has(long) || set.Has(new(big.Int).Lsh(long, 1)) || set.Has(new(big.Int).Lsh(long, 200)) {
		t.Error("long serials")
	}
	for i := range set.Len() {
		if at, found := set.Index(set.At(i)); !found || at != i || i > 0 && set.At(i-1).Compare(set.At(i)) >= 0 {
			t.Errorf("the serial at %d is found at %d", i, at)
		}
	}
	if list.Entries.Count() != 7 || set.Len() != 5 || !repeated {
		t.Errorf("%d entries, %d serials, repeated %v", list.Entries.Count(), set.Len(), repeated)
	}
	if perEntry := testing.AllocsPerRun(10, func() {
		for e := range list.Entries.All() {
			_, _ = e.Time()
			_, _ = e.Key()
		}
	}); perEntry > 0 {
		t.Errorf("a walk through the entries allocates %v times", perEntry)
	}
}

// What package x509 reads, this reader reads, to the same end. Seeds: Puppet's own CRLs.
func FuzzCRL(f *testing.F) {
	for _, ca := range []string{"puppetserver", "setup"} {
		data, err := os.ReadFile(filepath.Join("../ca/directory/testdata", ca, "ca_crl.pem"))
		if err != nil {
			f.Fatal(err)
		}
		for block := range Blocks(data) {
			f.Add(block.Bytes)
		}
	}
	for _, entries := range [][]byte{nil, {0x30, 0}, {0x30, 0x13, 0x30, 0x11, 2, 1, 5, 0x17, 0x0B, '2', '6', '1', '1', '2', '3', '1', '2', '0', '0', 'Z', ' '}} {
		f.Add(entries)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := ParseCRL(&pem.Block{Type: CRL, Bytes: der})
		if err == nil {
			got.Issuer() // does not panic on names of any kind
			_ = got.CheckWhole()
			if set, _ := got.Entries.Serials(); got.Entries.Count() < set.Len() {
				t.Error("more serials than entries")
			}
		}
		want, x509Err := x509.ParseRevocationList(der)
		if x509Err != nil {
			return
		}
		if err != nil {
			t.Fatalf("x509 reads it, but: %v", err)
		}
		compare(t, got, want)
	})
}

// What package x509 reads of a certificate, this reader reads, to the same end. Seeds: Puppet's own CAs.
func FuzzRawCertificate(f *testing.F) {
	var issuer *x509.Certificate
	for _, ca := range []string{"puppetserver", "setup"} {
		data, err := os.ReadFile(filepath.Join("../ca/directory/testdata", ca, "ca_crt.pem"))
		if err != nil {
			f.Fatal(err)
		}
		for block := range Blocks(data) {
			f.Add(block.Bytes)
		}
		if issuer, err = First(data); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := parseRaw(der)
		if err == nil {
			_, _, _, _ = got.Subject(), got.Issuer(), WeakHash(der), CheckIssued(der, issuer) // none of them panics
			if (got.X509 == nil) == (got.Unreadable == nil) {
				t.Errorf("it is read: %v, and it is not: %v", got.X509, got.Unreadable)
			}
		}
		want, x509Err := x509.ParseCertificate(der)
		if x509Err != nil {
			return
		}
		if err != nil {
			t.Fatalf("x509 reads it, but: %v", err)
		}
		if !bytes.Equal(got.Raw, want.Raw) || !bytes.Equal(got.RawSubject, want.RawSubject) || !bytes.Equal(got.RawIssuer, want.RawIssuer) ||
			!bytes.Equal(got.RawSubjectPublicKeyInfo, want.RawSubjectPublicKeyInfo) || got.SerialNumber.Cmp(want.SerialNumber) != 0 ||
			!got.NotBefore.Equal(want.NotBefore) || !got.NotAfter.Equal(want.NotAfter) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if err := want.CheckSignatureFrom(issuer); err == nil && CheckIssued(der, issuer) != nil {
			t.Errorf("x509 says that it is signed by %s, but: %v", issuer.Subject, CheckIssued(der, issuer))
		}
	})
}

func compare(t *testing.T, got *RevocationList, want *x509.RevocationList) {
	t.Helper()
	if !bytes.Equal(got.Raw, want.Raw) || !bytes.Equal(got.RawIssuer, want.RawIssuer) || !bytes.Equal(got.tbs, want.RawTBSRevocationList) ||
		!bytes.Equal(got.signature, want.Signature) || got.Version != 2 || !bytes.Equal(got.AuthorityKeyID, want.AuthorityKeyId) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !got.ThisUpdate.Equal(want.ThisUpdate) || !got.NextUpdate.Equal(want.NextUpdate) {
		t.Errorf("from %v to %v, want %v to %v", got.ThisUpdate, got.NextUpdate, want.ThisUpdate, want.NextUpdate)
	}
	if (got.Number == nil) != (want.Number == nil) || NumberOf(got).Cmp(NumberOf(&RevocationList{Number: want.Number})) != 0 {
		t.Errorf("number %v, want %v", got.Number, want.Number)
	}
	critical := false
	for _, e := range want.Extensions {
		critical = critical || e.Critical
	}
	if (got.CheckWhole() != nil) != critical {
		t.Errorf("critical extensions: %v, but %v", critical, got.CheckWhole())
	}
	i := 0
	for e := range got.Entries.All() {
		w := want.RevokedCertificateEntries[i]
		when, ok := e.Time()
		key, small := e.Key()
		wantKey, wantSmall := KeyOf(w.SerialNumber)
		if !bytes.Equal(e.Raw, w.Raw) || !ok || !when.Equal(w.RevocationTime) || key != wantKey || small != wantSmall {
			t.Errorf("entry %d: %X, %v, serial %X", i, e.Raw, when, e.Serial)
		}
		i++
	}
	if i != len(want.RevokedCertificateEntries) {
		t.Errorf("%d entries, want %d", i, len(want.RevokedCertificateEntries))
	}
}
