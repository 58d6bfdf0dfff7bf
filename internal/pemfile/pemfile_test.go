package pemfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func FuzzEncode(f *testing.F) {
	for _, n := range []int{0, 1, 2, 3, 47, 48, 49, 96, 1000} {
		f.Add(bytes.Repeat([]byte{0xA5}, n))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		want := pem.EncodeToMemory(&pem.Block{Type: CRL, Bytes: der})
		for _, cut := range []int{0, len(der) / 3, min(len(der), 48)} {
			got := Encode(CRL, der[:cut], nil, der[cut:])
			if !bytes.Equal(got, want) || len(got) != cap(got) {
				t.Errorf("got %q (room for %d), want %q", got, cap(got), want)
			}
		}
	})
}

// FuzzBlocks: the blocks are those that encoding/pem finds, and their texts are what Encode makes of them.
func FuzzBlocks(f *testing.F) {
	for _, n := range []int{1, 47, 48, 49, 1000} {
		one := Encode(CRL, bytes.Repeat([]byte{0xA5}, n))
		f.Add(slices.Concat(one, one))
		f.Add(slices.Concat([]byte("text\n"), one, []byte("more\n\n"), one))
		f.Add(bytes.ReplaceAll(slices.Concat(one, one), []byte("\n"), []byte("\r\n")))
		f.Add(one[:len(one)-1])
		f.Add(slices.Insert(one, len(one)/2, '\n'))
	}
	f.Add([]byte("-----BEGIN X-----\nA: b\n\nAAAA\n-----END X-----\n"))
	f.Add([]byte("-----BEGIN X-----\n-----END X-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rest := data
		for got, text := range Texts(data) {
			var want *pem.Block
			if want, rest = pem.Decode(rest); want == nil {
				t.Fatalf("encoding/pem finds no block like %+v", got)
			}
			if got.Type != want.Type || !bytes.Equal(got.Bytes, want.Bytes) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if !bytes.Equal(text, Encode(got.Type, got.Bytes)) {
				t.Errorf("the text of %+v is %q", got, text)
			}
		}
		if more, _ := pem.Decode(rest); more != nil {
			t.Errorf("encoding/pem finds %+v as well", more)
		}
	})
}

// issuer makes a CA.
func issuer(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, SubjectKeyId: []byte{1}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := First(Encode(Certificate, der))
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestCertificates(t *testing.T) {
	cert, _ := issuer(t)
	one := Encode(Certificate, cert.Raw)
	mixed := slices.Concat([]byte("some text\n"), Encode("EC PARAMETERS", []byte{1}), one, one)
	if certs, err := Certificates(mixed); err != nil || len(certs) != 2 || !certs[1].Equal(cert) {
		t.Errorf("two certificates among other blocks: %d, %v", len(certs), err)
	}
	if got, err := First(mixed); err != nil || !got.Equal(cert) {
		t.Errorf("the first certificate: %v", err)
	}
	for name, data := range map[string][]byte{
		"nothing":         nil,
		"only text":       []byte("some text\n"),
		"another type":    Encode(CRL, cert.Raw),
		"a broken second": slices.Concat(one, Encode(Certificate, []byte{1})),
	} {
		if certs, err := Certificates(data); err == nil {
			t.Errorf("%s: %d certificates, want an error", name, len(certs))
		}
	}
}

func TestHasContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crl.pem")
	text := bytes.Repeat([]byte("0123456789"), 20_000)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(text)
	other[len(other)-1]++
	for name, c := range map[string]struct {
		path string
		want []byte
		is   bool
	}{
		"the same": {path, text, true}, "the last byte differs": {path, other, false}, "the file is longer": {path, text[:100_000], false},
		"the file is shorter": {path, append(slices.Clone(text), 1), false}, "no file": {path + ".none", nil, false}, "nothing wanted": {path, nil, false},
	} {
		if got := HasContent(c.path, c.want); got != c.is {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A file that is written in place with the same size, and is given its old time
// again, as rsync and tar do, has changed nevertheless.
func TestStamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	write := func(text string) Stamp {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		s, err := StampOf(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	old := write("old key")
	if again, err := StampOf(path); err != nil || again != old {
		t.Errorf("untouched, but the stamp differs: %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for write("new key") == old { // within one tick of the kernel's clock the time of change is the same
		if time.Now().After(deadline) {
			t.Fatal("the same stamp after a change of the same size and time")
		}
	}
	if _, err := StampOf(path + ".none"); err == nil {
		t.Error("a file that is not there has a stamp")
	}
	if s := Stamps(path, path+".none"); s[0] == (Stamp{}) || s[1] != (Stamp{}) {
		t.Errorf("stamps %v", s)
	}
}
