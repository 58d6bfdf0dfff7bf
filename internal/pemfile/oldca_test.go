package pemfile_test

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/test/oldca"
)

// CRLs and certificates that OpenSSL makes and package x509 refuses are read, and where the key
// is one of Go's they are verified.
func TestOldCA(t *testing.T) {
	for _, root := range oldca.Roots() {
		t.Run(string(root), func(t *testing.T) {
			t.Parallel()
			dir := oldca.Make(t, root)
			certs, err := pemfile.RawCertificates(read(t, dir, "ca_crt.pem"))
			if err != nil || len(certs) != 2 {
				t.Fatalf("the chain: %d certificates, %v", len(certs), err)
			}
			var lists []*pemfile.RevocationList
			for block := range pemfile.Blocks(read(t, dir, "ca_crl.pem")) {
				list, err := pemfile.ParseCRL(block)
				if err != nil {
					t.Fatal(err)
				}
				lists = append(lists, list)
			}
			own, foreign := lists[0], lists[1]
			if own.Version != 1 || foreign.Version != 1 || own.Number != nil || own.EmptyEntries || own.Entries != nil {
				t.Errorf("versions %d and %d, number %v, %d bytes of entries", own.Version, foreign.Version, own.Number, len(own.Entries))
			}
			if err := own.CheckSignatureFrom(certs[0].X509); err != nil {
				t.Errorf("the own CRL: %v", err)
			}
			if foreign.Issuer() != certs[1].Subject() || foreign.Issuer() != "CN=Old Root" || certs[0].Issuer() != "CN=Old Root" {
				t.Errorf("the root %q, its CRL's issuer %q", certs[1].Subject(), foreign.Issuer())
			}
			if foreign.Entries.Count() != 1 || foreign.ThisUpdate.IsZero() || !foreign.NextUpdate.After(foreign.ThisUpdate) {
				t.Errorf("the root's CRL has %d entries, from %v to %v", foreign.Entries.Count(), foreign.ThisUpdate, foreign.NextUpdate)
			}
			for e := range foreign.Entries.All() {
				when, ok := e.Time()
				if !ok || when.Year() != 2025 {
					t.Errorf("revoked at %v", when)
				}
				if key, ok := e.Key(); ok != (root != oldca.Negative) || ok && key != (pemfile.SerialKey{19: 0x1A}) {
					t.Errorf("serial %X, key %X %v", e.Serial, key, ok)
				}
			}
			if got := certs[1].SerialNumber.Int64(); got != 0x17 && got != 17 && got != -17 && got != -0x17 {
				t.Errorf("the root's serial is %d", got)
			}
			checkRoot(t, root, certs, foreign)
		})
	}
}

// checkRoot checks what is known of signatures by the root.
func checkRoot(t *testing.T, root oldca.Root, certs []*pemfile.RawCertificate, crl *pemfile.RevocationList) {
	t.Helper()
	readable := certs[1].X509 != nil
	if want := root == oldca.SHA1 || root == oldca.PSS || root == oldca.NoKeyID; readable != want || readable == (certs[1].Unreadable != nil) {
		t.Fatalf("package x509 reads the root: %v, want %v: %v", readable, want, certs[1].Unreadable)
	}
	if !readable {
		return
	}
	err := crl.CheckSignatureFrom(certs[1].X509)
	issued := pemfile.CheckIssued(certs[0].Raw, certs[1].X509)
	switch root {
	case oldca.SHA1:
		if err != nil || issued != nil || crl.WeakHash() != "SHA-1" {
			t.Errorf("SHA-1: CRL %v, certificate %v, weak hash %q", err, issued, crl.WeakHash())
		}
	case oldca.PSS: // x509 has no key of such a certificate
		if !errors.Is(err, pemfile.ErrUnverifiable) || !errors.Is(issued, pemfile.ErrUnverifiable) {
			t.Errorf("RSA-PSS: CRL %v, certificate %v", err, issued)
		}
	}
	if err := crl.CheckSignatureFrom(certs[0].X509); err == nil {
		t.Error("the root's CRL counts as signed by the CA below")
	}
}

// TestLeafOfOldCA: a leaf is the CA's by whatever hash it is signed; one on a curve that Go lacks still has a serial and an end.
func TestLeafOfOldCA(t *testing.T) {
	dir := oldca.Make(t, oldca.SHA1)
	ca, err := pemfile.First(read(t, dir, "ca_crt.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"md5.example.com": {"-md5"}, "sha1.example.com": {"-sha1"}, "sha384.example.com": {"-sha384"},
		"pss.example.com":  {"-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:20"},
		"pss1.example.com": {"-sha1", "-sigopt", "rsa_padding_mode:pss"},
	} {
		oldca.Leaf(t, dir, name, oldca.RSAKey(), args...)
		leaf, err := pemfile.First(read(t, dir, "signed/"+name+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		if err := pemfile.CheckIssued(leaf.Raw, ca); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		leaf.Raw[24] ^= 1
		if err := pemfile.CheckIssued(leaf.Raw, ca); err == nil {
			t.Errorf("%s: a changed certificate counts as the CA's", name)
		}
	}
	oldca.Leaf(t, dir, "curve.example.com", oldca.BrainpoolKey(), "-set_serial", "291")
	certs, err := pemfile.RawCertificates(read(t, dir, "signed/curve.example.com.pem"))
	if err != nil || certs[0].X509 != nil || certs[0].Unreadable == nil || certs[0].SerialNumber.Int64() != 291 || !certs[0].NotAfter.After(certs[0].NotBefore) {
		t.Errorf("%+v, %v", certs, err)
	}
	if _, err := pemfile.RawCertificates(pem.EncodeToMemory(&pem.Block{Type: pemfile.Certificate, Bytes: []byte{0x30, 0}})); err == nil {
		t.Error("an empty SEQUENCE is a certificate")
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
