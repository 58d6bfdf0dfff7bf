package directory_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

// twin opens a copy of a CA's folder: somebody else who has its key.
func twin(t *testing.T, dir string) (*directory.Authority, string) {
	t.Helper()
	other := filepath.Join(t.TempDir(), "ca")
	if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	chmod(t, filepath.Join(other, "ca_key.pem"), 0o600)
	return open(t, other, directory.Options{}), other
}

// tampered is a CA whose CRL has number 2 and lists 0001 and 0002, and its copy;
// old has number 1 and lists 0001.
type tampered struct{ own, copied, old string }

// elsewhere has the CRL, with more revoked by somebody else, at path.
func (w tampered) elsewhere(t *testing.T, path string, serials ...node.Serial) {
	t.Helper()
	other, dir := twin(t, filepath.Dir(w.own))
	for _, s := range serials {
		revoke(t, other, ca.Target{Serial: s})
	}
	write(t, path, read(t, dir, "ca_crl.pem"))
}

// tamperings are changes by another program, with the serials that it revokes and the lowest number of the next CRL.
var tamperings = map[string]struct {
	spoil func(t *testing.T, w tampered)
	more  []node.Serial
	least int64
}{
	"an older CRL":            {func(t *testing.T, w tampered) { write(t, w.own, w.old) }, nil, 2},
	"an older copy":           {func(t *testing.T, w tampered) { write(t, w.copied, w.old) }, nil, 2},
	"garbage":                 {func(t *testing.T, w tampered) { write(t, w.own, "garbage") }, nil, 2},
	"nothing":                 {func(t *testing.T, w tampered) { write(t, w.own, "") }, nil, 2},
	"the CRL removed":         {func(t *testing.T, w tampered) { remove("ca_crl.pem")(t, filepath.Dir(w.own)) }, nil, 2},
	"the copy removed":        {func(t *testing.T, w tampered) { remove("crl.pem")(t, filepath.Dir(w.copied)) }, nil, 2},
	"a garbage copy":          {func(t *testing.T, w tampered) { write(t, w.copied, "garbage") }, nil, 2},
	"revoked by hand":         {func(t *testing.T, w tampered) { w.elsewhere(t, w.own, "0003") }, []node.Serial{"0003"}, 4},
	"revoked by hand, copied": {func(t *testing.T, w tampered) { w.elsewhere(t, w.copied, "0003", "0004") }, []node.Serial{"0003", "0004"}, 5},
	"both": {func(t *testing.T, w tampered) {
		w.elsewhere(t, w.copied, "0004", "0005")
		w.elsewhere(t, w.own, "0003")
	}, []node.Serial{"0003", "0004", "0005"}, 5},
	"from an older CRL": {func(t *testing.T, w tampered) {
		write(t, w.own, w.old)
		w.elsewhere(t, w.own, "0003")
	}, []node.Serial{"0003"}, 3},
}

// TestSomebodyElseWrites: another program changes ca_crl.pem and a copy.
// No revocation is lost, the number never decreases, and all files are correct again
// after the next Care or the next revocation.
func TestSomebodyElseWrites(t *testing.T) {
	for name, test := range tamperings {
		for _, how := range []string{"care", "revoke"} {
			t.Run(name+", "+how, func(t *testing.T) {
				dir := create(t, directory.CreateOptions{Key: ca.ECP256})
				w := tampered{own: filepath.Join(dir, "ca_crl.pem"), copied: filepath.Join(t.TempDir(), "crl.pem")}
				log, hook := logtest.NewNullLogger()
				a := open(t, dir, directory.Options{Publish: []string{w.copied}, Log: log})
				revoke(t, a, ca.Target{Serial: "0001"})
				w.old = read(t, w.own)
				revoke(t, a, ca.Target{Serial: "0002"})
				test.spoil(t, w)
				hook.Reset()
				want := append([]node.Serial{"0001", "0002"}, test.more...)
				if how == "care" {
					care(t, a)
				} else {
					revoke(t, a, ca.Target{Serial: "0A0B"})
					want, test.least = append(want, "0A0B"), test.least+1
				}
				number := ownCRL(t, dir).number()
				if number < test.least {
					t.Errorf("CRL number %d, want %d or more", number, test.least)
				}
				ownCRL(t, dir).expect(number, want...)
				checkTrust(t, a, dir)
				if read(t, w.copied) != read(t, w.own) {
					t.Error("the copy differs")
				}
				if !slices.ContainsFunc(hook.AllEntries(), func(e *logrus.Entry) bool { return e.Level == logrus.WarnLevel }) {
					t.Errorf("no warning: %v", hook.AllEntries())
				}
				before := read(t, w.own)
				care(t, a)
				if read(t, w.own) != before {
					t.Error("another round changed it again")
				}
				reopen(t, a, dir, directory.Options{Publish: []string{w.copied}})
			})
		}
	}
}

// TestCAIsExchanged: the CRL of a new CA is not overwritten by the old one's.
func TestCAIsExchanged(t *testing.T) {
	dir, other := create(t, directory.CreateOptions{Key: ca.ECP256}), create(t, directory.CreateOptions{Key: ca.ECP256})
	a := open(t, dir, directory.Options{})
	for _, name := range []string{"ca_crt.pem", "ca_key.pem", "ca_crl.pem"} {
		from(other, name)(t, dir)
	}
	_, err := a.Revoke(t.Context(), []ca.Target{{Serial: "0A0B"}})
	if !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "is not the certificate that espm started with") {
		t.Errorf("Revoke: %v", err)
	}
	if err := a.Care(t.Context()); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("Care: %v", err)
	}
	if read(t, dir, "ca_crl.pem") != read(t, other, "ca_crl.pem") {
		t.Error("the new CA's CRL was overwritten")
	}
}

// TestForeignCRLIsRenewed: whoever holds the root's key puts a new CRL into the
// file; an older one does not take its place.
func TestForeignCRLIsRenewed(t *testing.T) {
	dir := fixture(t, "setup")
	copied := filepath.Join(t.TempDir(), "crl.pem")
	older := strings.SplitAfter(read(t, dir, "ca_crl.pem"), "-----END X509 CRL-----\n")[1]
	a := open(t, dir, directory.Options{Publish: []string{copied}})
	renewed := renewRoot(t, dir)
	for _, how := range []func(){
		func() { care(t, a) },
		func() { revoke(t, a, ca.Target{Serial: "0A0B"}) },
	} {
		own := strings.SplitAfter(read(t, dir, "ca_crl.pem"), "-----END X509 CRL-----\n")[0]
		write(t, filepath.Join(dir, "ca_crl.pem"), own+renewed)
		how()
		for _, path := range []string{copied, filepath.Join(dir, "ca_crl.pem")} {
			if got := strings.SplitAfter(read(t, path), "-----END X509 CRL-----\n"); got[1] != renewed {
				t.Errorf("%s has not the root's new CRL", path)
			}
		}
		checkTrust(t, a, dir)
		write(t, filepath.Join(dir, "ca_crl.pem"), own+older)
		how()
		if !bytes.HasSuffix([]byte(read(t, dir, "ca_crl.pem")), []byte(renewed)) {
			t.Error("the root's older CRL took the place of the new one")
		}
	}
}

// renewRoot signs a CRL with the root's key, in PEM.
func renewRoot(t *testing.T, dir string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(read(t, dir, "root_key.pem")))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	_, rest := pem.Decode([]byte(read(t, dir, "ca_crt.pem")))
	block, _ = pem.Decode(rest)
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(77), ThisUpdate: now(), NextUpdate: now().Add(365 * day),
	}, root, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// TestMergeFaults fails the write of the merged CRL: what somebody else revoked
// is neither lost nor published without lasting.
func TestMergeFaults(t *testing.T) {
	for _, where := range []string{"ca_crl.pem", "crl.pem"} {
		faults(t, func(t *testing.T, applied, killed bool) {
			dir := create(t, directory.CreateOptions{Key: ca.ECP256})
			copied := filepath.Join(t.TempDir(), "crl.pem")
			disk := &faulty{failAt: -1}
			a := open(t, dir, directory.Options{Publish: []string{copied}, Disk: disk})
			revoke(t, a, ca.Target{Serial: "0001"})
			other, otherDir := twin(t, dir)
			revoke(t, other, ca.Target{Serial: "0002"})
			path := map[string]string{"ca_crl.pem": filepath.Join(dir, "ca_crl.pem"), "crl.pem": copied}[where]
			write(t, path, read(t, otherDir, "ca_crl.pem"))
			disk.arm(0, applied, killed)
			if err := a.Care(t.Context()); !errors.Is(err, errFault) || !errors.Is(err, node.ErrUnavailable) {
				t.Fatalf("Care: %v", err)
			}
			if killed && where == "crl.pem" && !applied {
				// At the start a copy later than the CA's own is refused.
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
				if _, err := tryOpen(dir, directory.Options{Publish: []string{copied}}); err == nil {
					t.Error("Open took a copy later than its own CRL")
				}
				return
			}
			if killed {
				a = reopen(t, a, dir, directory.Options{Publish: []string{copied}})
			} else {
				disk.arm(-1, false, false)
			}
			care(t, a)
			if n := ownCRL(t, dir).number(); n < 2 {
				t.Errorf("CRL number %d, want 2 or more", n)
			}
			ownCRL(t, dir).expect(ownCRL(t, dir).number(), "0001", "0002")
			checkTrust(t, a, dir)
			if read(t, copied) != read(t, dir, "ca_crl.pem") {
				t.Error("the copy differs")
			}
		})
	}
}
