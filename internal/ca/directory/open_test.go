package directory_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/need"
)

// TestTakeOverPuppetServer goes on from where a real Puppet Server stopped.
func TestTakeOverPuppetServer(t *testing.T) {
	dir := fixture(t, "puppetserver")
	inventory, serial := read(t, dir, "inventory.txt"), read(t, dir, "serial")
	a := open(t, dir, directory.Options{})
	found, err := a.Find(t.Context(), ca.Query{Certname: "web1.example.com", Serial: "0003"})
	if err != nil || found.Certificate == nil {
		t.Fatalf("Find of Puppet's certificate: %+v, %v", found, err)
	}
	cert := sign(t, a, "new.example.com")
	line := fmt.Sprintf("0x%04X 2026-11-22T12:00:00UTC 2026-11-23T13:00:00UTC /CN=new.example.com\n", cert.SerialNumber)
	if got := read(t, dir, "inventory.txt"); got != inventory+line {
		t.Errorf("inventory:\n%swant Puppet's and\n%s", got, line)
	}
	if read(t, dir, "serial") != serial {
		t.Error("the file serial changed")
	}
	receipts := revoke(t, a, ca.Target{Serial: "0003", Certname: "web1.example.com"}, ca.Target{Serial: "0004", Certname: "web2.example.com"})
	for _, r := range receipts {
		if r.CRLNumber != "2" {
			t.Errorf("receipt %+v, want CRL number 2, after Puppet's 1", r)
		}
	}
	crl := readCRLs(t, filepath.Join(dir, "ca_crl.pem"))[0]
	var listed []string
	for _, e := range crl.RevokedCertificateEntries {
		listed = append(listed, fmt.Sprintf("%d reason %d", e.SerialNumber, e.ReasonCode))
	}
	if want := []string{"4 reason 1", "3 reason 1"}; !slices.Equal(listed, want) {
		t.Errorf("CRL lists %q, want %q", listed, want)
	}
	for name, want := range map[string]bool{"web1": false, "web2": false, "web3": true} {
		if got := exists(t, dir, "signed", name+".example.com.pem"); got != want {
			t.Errorf("signed/%s.example.com.pem stands: %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"espm.lock", "ca_crl.pem"} {
		if !exists(t, dir, name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestForeignCRL: the root's CRL stays byte for byte, and ours comes first.
func TestForeignCRL(t *testing.T) {
	dir := fixture(t, "setup")
	root := strings.SplitAfter(read(t, dir, "ca_crl.pem"), "-----END X509 CRL-----\n")[1]
	a := open(t, dir, directory.Options{})
	revoke(t, a, ca.Target{Serial: "0A0B"})
	got := strings.SplitAfter(read(t, dir, "ca_crl.pem"), "-----END X509 CRL-----\n")
	if len(got) != 3 || got[1] != root || got[2] != "" {
		t.Errorf("ca_crl.pem has %d parts, the second not the root's", len(got))
	}
}

func TestOpenRefuses(t *testing.T) {
	other := create(t, directory.CreateOptions{Key: ca.ECP256})
	tests := map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"no key":         {remove("ca_key.pem"), "cannot read CA key"},
		"open key":       {func(t *testing.T, dir string) { chmod(t, filepath.Join(dir, "ca_key.pem"), 0o644) }, "is open to everybody (mode 0644)"},
		"garbage key":    {put("ca_key.pem", "garbage"), "holds no PEM block"},
		"empty key":      {put("ca_key.pem", ""), "holds no PEM block"},
		"encrypted key":  {put("ca_key.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"), "is encrypted"},
		"public key":     {swap("ca_pub.pem", "ca_key.pem"), `holds a PEM block "PUBLIC KEY"`},
		"other key":      {from(other, "ca_key.pem"), "does not belong to"},
		"no certificate": {remove("ca_crt.pem"), "read CA certificate"},
		"root first": {func(t *testing.T, dir string) {
			certs := strings.SplitAfter(read(t, dir, "ca_crt.pem"), "-----END CERTIFICATE-----\n")
			write(t, filepath.Join(dir, "ca_crt.pem"), certs[1]+certs[0])
		}, "must come first"},
		"no root": {func(t *testing.T, dir string) {
			certs := strings.SplitAfter(read(t, dir, "ca_crt.pem"), "-----END CERTIFICATE-----\n")
			write(t, filepath.Join(dir, "ca_crt.pem"), certs[0])
		}, "the chain lacks"},
		"other root": {func(t *testing.T, dir string) {
			certs := strings.SplitAfter(read(t, dir, "ca_crt.pem"), "-----END CERTIFICATE-----\n")
			write(t, filepath.Join(dir, "ca_crt.pem"), certs[0]+read(t, other, "ca_crt.pem"))
		}, "was not issued by the one that follows"},
		"no CRL": {remove("ca_crl.pem"), "read CRL"},
		"no CRL of the root": {func(t *testing.T, dir string) {
			crls := strings.SplitAfter(read(t, dir, "ca_crl.pem"), "-----END X509 CRL-----\n")
			write(t, filepath.Join(dir, "ca_crl.pem"), crls[0])
		}, "holds no CRL of"},
		"other CRL":    {from(other, "ca_crl.pem"), "is not signed by its key"},
		"no inventory": {remove("inventory.txt"), "read inventory"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := create(t, directory.CreateOptions{Key: ca.ECP256, Intermediate: true})
			test.spoil(t, dir)
			_, err := tryOpen(dir, directory.Options{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %v", err)
			}
		})
	}
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func put(name, data string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { write(t, filepath.Join(dir, name), data) }
}

func swap(from, to string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { write(t, filepath.Join(dir, to), read(t, dir, from)) }
}

func from(other, name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { write(t, filepath.Join(dir, name), read(t, other, name)) }
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestKeyOfAnother opens the folder as a user who may not read the key.
func TestKeyOfAnother(t *testing.T) {
	need.Root(t, "become another user")
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	for parent := filepath.Dir(dir); parent != filepath.Clean(os.TempDir()); parent = filepath.Dir(parent) {
		chmod(t, parent, 0o755) // the outermost of a test's folders is closed to others
	}
	chmod(t, filepath.Join(dir, "ca_key.pem"), 0o600) // the thread stays in root's group
	// The file system's user is the thread's own; root's capabilities go with it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(nobody); err != nil {
		t.Fatal(err)
	}
	_, err := tryOpen(dir, directory.Options{})
	if err := unix.Setfsuid(0); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "cannot read CA key "+filepath.Join(dir, "ca_key.pem")+": permission denied;") {
		t.Errorf("Open: %v, want one that says who must run it", err)
	}
}

func TestLock(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	a := open(t, dir, directory.Options{})
	_, err := tryOpen(dir, directory.Options{})
	if want := fmt.Sprintf("is in use by another espm (pid %d)", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("second Open: %v, want %q", err, want)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, directory.Options{})
}

func TestTornInventory(t *testing.T) {
	whole := "0x0001 2026-11-22T12:00:00UTC 2041-11-19T12:00:00UTC /CN=Puppet CA: puppet.example.com\n"
	for name, tail := range map[string]string{
		"whole":         "",
		"half a line":   "0x0A1B 2026-11-22T12:0",
		"half a serial": "0x",
		"zeros":         strings.Repeat("\x00", 5000),
		"no line's end": "0x0A1B 2026-11-22T12:00:00GMT 2027-11-22T12:00:00GMT /CN=x",
	} {
		t.Run(name, func(t *testing.T) {
			want, ended := whole+tail, tail != ""
			if ended {
				want += "\n"
			}
			dir := create(t, directory.CreateOptions{Key: ca.ECP256})
			write(t, filepath.Join(dir, "inventory.txt"), whole+tail)
			log, hook := logtest.NewNullLogger()
			a := open(t, dir, directory.Options{Log: log})
			if got := read(t, dir, "inventory.txt"); got != want {
				t.Errorf("inventory %.300q, want %.300q", got, want)
			}
			if warned := len(hook.AllEntries()) > 0; warned != ended {
				t.Errorf("warned %v, want %v: %v", warned, ended, hook.AllEntries())
			}
			cert := sign(t, a, "web.example.com")
			if err := os.Remove(filepath.Join(dir, "signed", "web.example.com.pem")); err != nil {
				t.Fatal(err)
			}
			q := ca.Query{Certname: "web.example.com", Serial: node.SerialOf(cert.SerialNumber)}
			found, err := a.Find(t.Context(), q)
			if err != nil || !found.Issued || found.Certificate != nil {
				t.Errorf("Find by the inventory: %+v, %v", found, err)
			}
			q.Certname = "other.example.com"
			if found, err := a.Find(t.Context(), q); err != nil || found.Issued {
				t.Errorf("Find under another's name: %+v, %v", found, err)
			}
		})
	}
}

func TestStaleTemporaryFiles(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	published := filepath.Join(t.TempDir(), "crl.pem")
	stale := []string{
		filepath.Join(dir, ".ca_crl.pem123"), filepath.Join(dir, "signed", ".web.example.com.pem45"), filepath.Join(filepath.Dir(published), ".crl.pem6"),
	}
	kept := filepath.Join(filepath.Dir(published), ".other.pem6")
	for _, path := range append(stale, kept) {
		write(t, path, "half")
	}
	open(t, dir, directory.Options{Publish: []string{published}})
	for _, path := range stale {
		if exists(t, path) {
			t.Errorf("%s still stands", path)
		}
	}
	if !exists(t, kept) {
		t.Errorf("%s was not ours to remove", kept)
	}
}

func TestPublish(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	good := filepath.Join(t.TempDir(), "crl.pem")
	missing := filepath.Join(t.TempDir(), "absent", "crl.pem")
	log, hook := logtest.NewNullLogger()
	a := open(t, dir, directory.Options{Publish: []string{missing, good}, Log: log})
	if read(t, good) != read(t, dir, "ca_crl.pem") {
		t.Error("Open did not publish")
	}
	if e := hook.LastEntry(); e == nil || e.Level != logrus.WarnLevel {
		t.Error("Open did not warn of the copy that it can't write")
	}
	cert := sign(t, a, "web.example.com")
	_, err := a.Revoke(t.Context(), []ca.Target{target(cert)})
	if err == nil || !strings.Contains(err.Error(), missing) {
		t.Fatalf("Revoke: %v, want one that names %s", err, missing)
	}
	if read(t, good) != read(t, dir, "ca_crl.pem") {
		t.Error("one copy stopped the other")
	}
	if err := os.Mkdir(filepath.Dir(missing), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, good, "changed by somebody")
	if got := revoke(t, a, target(cert))[0].CRLNumber; got != "1" {
		t.Errorf("CRL number %s, want 1: nothing new was revoked", got)
	}
	for _, path := range []string{good, missing} {
		if read(t, path) != read(t, dir, "ca_crl.pem") {
			t.Errorf("%s was not written again", path)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o644 {
			t.Errorf("mode of %s: %v, %v", path, st.Mode(), err)
		}
	}
}

func TestOpenRefusesAnOldBackup(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	old := read(t, dir, "ca_crl.pem")
	published := filepath.Join(t.TempDir(), "crl.pem")
	a := open(t, dir, directory.Options{Publish: []string{published}})
	revoke(t, a, ca.Target{Serial: "0A0B"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ca_crl.pem"), old)
	_, err := tryOpen(dir, directory.Options{Publish: []string{published}})
	if err == nil || !strings.Contains(err.Error(), "has number 1, later than 0") {
		t.Errorf("Open: %v, want a refusal", err)
	}
}

// TestSuccessorStays: the certificate in signed/ goes only with its own serial.
func TestSuccessorStays(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	a := open(t, dir, directory.Options{})
	first := sign(t, a, "web.example.com")
	sign(t, a, "web.example.com")
	revoke(t, a, target(first))
	if !exists(t, dir, "signed", "web.example.com.pem") {
		t.Error("the successor's certificate is gone")
	}
}

func extensionSet(cert *x509.Certificate) string {
	var lines []string
	for _, e := range cert.Extensions {
		lines = append(lines, fmt.Sprintf("%s critical %v\n", e.Id, e.Critical))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func owner(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid, st.Gid
}
