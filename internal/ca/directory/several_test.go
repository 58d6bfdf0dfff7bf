package directory_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
)

const pemEnd = "-----END X509 CRL-----\n"

// TestTwoOwnCRLsInOneFile: somebody put a second CRL of the CA into the file. Both count,
// in whatever order, and one is left.
func TestTwoOwnCRLsInOneFile(t *testing.T) {
	for name, atStart := range map[string]bool{"at the start": true, "while it runs": false} {
		for order, first := range map[string]bool{"ours first": true, "theirs first": false} {
			t.Run(name+", "+order, func(t *testing.T) {
				dir := create(t, directory.CreateOptions{Key: ca.ECP256})
				path, copied := filepath.Join(dir, "ca_crl.pem"), filepath.Join(t.TempDir(), "crl.pem")
				o := directory.Options{Publish: []string{copied}}
				a := open(t, dir, o)
				other, otherDir := twin(t, dir)
				revoke(t, a, ca.Target{Serial: "0001"})
				revoke(t, other, ca.Target{Serial: "0002"})
				both := []string{read(t, path), read(t, otherDir, "ca_crl.pem")}
				if !first {
					slices.Reverse(both)
				}
				write(t, path, strings.Join(both, ""))
				if atStart {
					a = reopen(t, a, dir, o)
				} else {
					care(t, a)
				}
				ownCRL(t, dir).expect(2, "0001", "0002")
				if n := len(readCRLs(t, path)); n != 1 || read(t, copied) != read(t, path) {
					t.Errorf("%d CRLs; the copy is the same: %v", n, read(t, copied) == read(t, path))
				}
				checkTrust(t, a, dir)
			})
		}
	}
}

// TestOwnCRLTwice adds nothing, and leaves one.
func TestOwnCRLTwice(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	path := filepath.Join(dir, "ca_crl.pem")
	once := read(t, path)
	write(t, path, once+once)
	a := open(t, dir, directory.Options{})
	if read(t, path) != once {
		t.Error("the second is still there")
	}
	checkTrust(t, a, dir)
}

// TestCopyThatListsMoreAtTheStart: equal in number, or lower, it may have what nothing else has.
func TestCopyThatListsMoreAtTheStart(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	copied := filepath.Join(t.TempDir(), "crl.pem")
	o := directory.Options{Publish: []string{copied}}
	a := open(t, dir, o)
	other, otherDir := twin(t, dir)
	revoke(t, other, ca.Target{Serial: "0003"})
	revoke(t, a, ca.Target{Serial: "0001"})
	revoke(t, a, ca.Target{Serial: "0002"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, copied, read(t, otherDir, "ca_crl.pem"))
	a = open(t, dir, o)
	ownCRL(t, dir).expect(3, "0001", "0002", "0003")
	if read(t, copied) != read(t, dir, "ca_crl.pem") {
		t.Error("the copy differs")
	}
	checkTrust(t, a, dir)
}

// forgedRoot is a CRL in the root's name that is not signed by its key.
func forgedRoot(t *testing.T, dir string) string {
	t.Helper()
	_, rest := pem.Decode([]byte(read(t, dir, "ca_crt.pem")))
	block, _ := pem.Decode(rest)
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root.PublicKey = key.Public()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(99), ThisUpdate: now().Add(day), NextUpdate: now().Add(9 * day),
	}, root, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// TestForgedForeignCRL never takes the place of a good one, which takes its.
func TestForgedForeignCRL(t *testing.T) {
	dir := fixture(t, "setup")
	path, copied := filepath.Join(dir, "ca_crl.pem"), filepath.Join(t.TempDir(), "crl.pem")
	log, hook := logtest.NewNullLogger()
	o := directory.Options{Publish: []string{copied}, Log: log}
	a := open(t, dir, o)
	parts := strings.SplitAfter(read(t, path), pemEnd)
	own, good, forged := parts[0], parts[1], forgedRoot(t, dir)
	expect := func(want string, warning bool) {
		t.Helper()
		for _, file := range []string{path, copied} {
			if got := strings.SplitAfter(read(t, file), pemEnd); len(got) != 3 || got[1] != want {
				t.Errorf("%s has %d parts, the second not the CRL wanted", file, len(got))
			}
		}
		warned := slices.ContainsFunc(hook.AllEntries(), func(e *logrus.Entry) bool {
			return e.Level == logrus.WarnLevel && strings.Contains(e.Message, "has a bad signature")
		})
		if warned != warning {
			t.Errorf("warned: %v, want %v", warned, warning)
		}
		hook.Reset()
		checkTrust(t, a, dir)
	}
	for _, more := range []string{forged, forged + good, good + forged} {
		write(t, path, own+more)
		care(t, a)
		expect(good, true)
	}
	// At the start there is no other, and revocations must go on.
	write(t, path, own+forged)
	a = reopen(t, a, dir, o)
	expect(forged, true)
	write(t, path, own+good)
	care(t, a)
	expect(good, false)
}

// TestNoNewlineAtTheEnd: what stands last in a file does not when the next is made of it.
func TestNoNewlineAtTheEnd(t *testing.T) {
	dir := fixture(t, "setup")
	path, copied := filepath.Join(dir, "ca_crl.pem"), filepath.Join(t.TempDir(), "crl.pem")
	parts := strings.SplitAfter(read(t, path), pemEnd)
	ownLast := strings.TrimSuffix(parts[0], "\n")
	write(t, path, parts[1]+ownLast)
	a := open(t, dir, directory.Options{Publish: []string{copied}})
	write(t, path, renewRoot(t, dir)+ownLast)
	care(t, a)
	if n := len(readCRLs(t, copied)); n != 2 || strings.Contains(read(t, copied), "----------") {
		t.Errorf("%d CRLs in\n%s", n, read(t, copied))
	}
}

// TestGreatNumber: RFC 5280 section 5.2.3 allows 20 octets.
func TestGreatNumber(t *testing.T) {
	most := new(big.Int).Lsh(big.NewInt(1), 159)
	for _, test := range []struct {
		number *big.Int
		ok     bool
	}{
		{new(big.Int).Sub(most, big.NewInt(2)), true}, {new(big.Int).Sub(most, big.NewInt(1)), false},
	} {
		dir := create(t, directory.CreateOptions{Key: ca.ECP256})
		block, _ := pem.Decode([]byte(read(t, dir, "ca_key.pem")))
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		block, _ = pem.Decode([]byte(read(t, dir, "ca_crt.pem")))
		issuer, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: test.number, ThisUpdate: now(), NextUpdate: now().Add(day),
		}, issuer, key)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "ca_crl.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})))
		a, err := tryOpen(dir, directory.Options{})
		if err == nil {
			err = a.Close()
		}
		if (err == nil) != test.ok || err != nil && !strings.Contains(err.Error(), "20 octets") {
			t.Errorf("number %d: %v", test.number, err)
		}
	}
}

// TestTidy removes the temporary files of every file that is replaced, and no others.
func TestTidy(t *testing.T) {
	dir, folder := create(t, directory.CreateOptions{Key: ca.ECP256}), t.TempDir()
	publish := []string{filepath.Join(folder, "one.pem"), filepath.Join(folder, "two.pem"), filepath.Join(dir, "copy.pem")}
	left := append([]string{filepath.Join(dir, "espm_crl_number"), filepath.Join(dir, "ca_crl.pem"), filepath.Join(dir, "signed", "a.pem")}, publish...)
	temporary := func(path string) string { return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"123") }
	for _, path := range left {
		write(t, temporary(path), "left over")
	}
	other := temporary(filepath.Join(folder, "other.pem"))
	write(t, other, "somebody else's")
	open(t, dir, directory.Options{Publish: publish})
	for _, path := range left {
		if exists(t, temporary(path)) {
			t.Errorf("%s is left", temporary(path))
		}
	}
	if !exists(t, other) {
		t.Error("removed what is not ours")
	}
}
