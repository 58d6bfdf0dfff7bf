package directory_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/catest"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

// now is the clock of all tests: the day after the fixtures were made.
func now() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

// flavours are the kinds of CA directory that there are.
var flavours = map[string]func(t *testing.T) string{
	"ec":      func(t *testing.T) string { return create(t, directory.CreateOptions{Key: ca.ECP256}) },
	"ec-p384": func(t *testing.T) string { return create(t, directory.CreateOptions{Key: ca.ECP384}) },
	"rsa":     func(t *testing.T) string { return create(t, directory.CreateOptions{Key: ca.RSA2048}) },
	"intermediate": func(t *testing.T) string {
		return create(t, directory.CreateOptions{Key: ca.ECP256, Intermediate: true})
	},
	"puppetserver": func(t *testing.T) string { return fixture(t, "puppetserver") },
	"puppetsetup":  func(t *testing.T) string { return fixture(t, "setup") },
}

func TestConformance(t *testing.T) {
	for name, make := range flavours {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			catest.Run(t, catest.Options{Now: now}, func(t *testing.T) ca.Authority {
				return open(t, make(t), directory.Options{})
			})
		})
	}
}

// create makes a CA in a new folder.
func create(t *testing.T, o directory.CreateOptions) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	o.Host, o.Now = "puppet.example.com", now
	if err := directory.Create(dir, o); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fixture copies a directory that Puppet made, with its modes, which git does not keep.
func fixture(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", name))); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"ca_key.pem", "root_key.pem"} {
		if err := os.Chmod(filepath.Join(dir, key), 0o640); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t *testing.T, dir string, o directory.Options) *directory.Authority {
	t.Helper()
	a, err := tryOpen(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() }) // a test may have closed it before
	return a
}

func tryOpen(dir string, o directory.Options) (*directory.Authority, error) {
	if o.Now == nil {
		o.Now = now
	}
	return directory.Open(dir, o)
}

// request asks for a certificate with a P-256 key.
func request(t *testing.T, a ca.Authority, name node.Certname) ca.Request {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ca.Request{Certname: name, Serial: a.NewSerial(), Key: key, TTL: time.Hour}
}

func sign(t *testing.T, a ca.Authority, name node.Certname) *x509.Certificate {
	t.Helper()
	cert, err := a.Sign(t.Context(), request(t, a, name))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func target(cert *x509.Certificate) ca.Target {
	return ca.Target{Serial: node.SerialOf(cert.SerialNumber), Certname: node.Certname(cert.Subject.CommonName)}
}

func revoke(t *testing.T, a ca.Authority, targets ...ca.Target) []node.Receipt {
	t.Helper()
	receipts, err := a.Revoke(t.Context(), targets)
	if err != nil {
		t.Fatal(err)
	}
	return receipts
}

// readCRLs parses a CRL file.
func readCRLs(t *testing.T, path string) []*x509.RevocationList {
	t.Helper()
	var crls []*x509.RevocationList
	for block, rest := pem.Decode([]byte(read(t, path))); block != nil; block, rest = pem.Decode(rest) {
		crl, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		crls = append(crls, crl)
	}
	return crls
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, path ...string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(path...))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return err == nil
}

// listing names the files below dir with their modes.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		lines = append(lines, info.Mode().String()+" "+rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n") + "\n"
}
