package directory_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/need"
)

func TestCreateMakesWhatPuppetMakes(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	want := `drwxr-xr-x .
-rw-r--r-- ca_crl.pem
-rw-r--r-- ca_crt.pem
-rw------- ca_key.pem
-rw-r--r-- ca_pub.pem
-rw-r--r-- infra_crl.pem
-rw-r--r-- infra_inventory.txt
-rw-r--r-- infra_serials
-rw-r--r-- inventory.txt
drwxr-xr-x requests
-rw-r--r-- serial
drwxr-xr-x signed
`
	if got := listing(t, dir); got != want {
		t.Errorf("made\n%swant\n%s", got, want)
	}
	if got, want := read(t, dir, "inventory.txt"), "0x0001 2026-11-22T12:00:00UTC 2041-11-19T12:00:00UTC /CN=Puppet CA: puppet.example.com\n"; got != want {
		t.Errorf("inventory %q, want %q", got, want)
	}
	if got := read(t, dir, "serial"); got != "0002" {
		t.Errorf("serial %q, want 0002", got)
	}
	crls := readCRLs(t, filepath.Join(dir, "ca_crl.pem"))
	if len(crls) != 1 || crls[0].Number.Sign() != 0 {
		t.Errorf("want one CRL with the number 0, got %v", crls)
	}
}

func TestCreateIntermediate(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256, Intermediate: true})
	st, err := os.Stat(filepath.Join(dir, "root_key.pem"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("root_key.pem: %v, %v; want mode 0600", st, err)
	}
	own, root := certificates(t, dir)[0], certificates(t, dir)[1]
	if err := own.CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
	crls := readCRLs(t, filepath.Join(dir, "ca_crl.pem"))
	for i, cert := range []*x509.Certificate{own, root} {
		if err := crls[i].CheckSignatureFrom(cert); err != nil {
			t.Errorf("CRL %d: %v", i, err)
		}
	}
	if got := read(t, dir, "inventory.txt"); got != "" {
		t.Errorf("inventory %q, want none: the root's certificates are not ours", got)
	}
}

// TestCreateLikePuppet compares with the CA that Puppet Server made.
func TestCreateLikePuppet(t *testing.T) {
	ours := certificates(t, create(t, directory.CreateOptions{Key: ca.RSA2048}))[0]
	theirs := certificates(t, fixture(t, "puppetserver"))[0]
	if got, want := extensionSet(ours), extensionSet(theirs); got != want {
		t.Errorf("extensions\n%swant\n%s", got, want)
	}
	if ours.SerialNumber.Cmp(theirs.SerialNumber) != 0 || ours.SignatureAlgorithm != theirs.SignatureAlgorithm {
		t.Errorf("serial %v, %v; want %v, %v", ours.SerialNumber, ours.SignatureAlgorithm, theirs.SerialNumber, theirs.SignatureAlgorithm)
	}
}

func TestCreateRefuses(t *testing.T) {
	tests := map[string]struct {
		options directory.CreateOptions
		want    string
	}{
		"host in upper case": {directory.CreateOptions{Host: "Puppet"}, "must be lower case"},
		"no host":            {directory.CreateOptions{}, "must not be empty"},
		"long host":          {directory.CreateOptions{Host: strings.Repeat("a", 60)}, "ca_name: at most 64 bytes"},
		"unknown key":        {directory.CreateOptions{Host: "h", Key: "dsa"}, `ca_key_algorithm: "dsa": must be one of`},
		"long validity":      {directory.CreateOptions{Host: "h", Validity: 100 * 365 * 24 * time.Hour}, "ca_validity: from"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			err := directory.Create(dir, test.options)
			if !errors.Is(err, node.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if exists(t, dir) {
				t.Error("made a folder all the same")
			}
		})
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	before := read(t, dir, "ca_key.pem")
	err := directory.Create(dir, directory.CreateOptions{Host: "puppet.example.com", Key: ca.ECP256})
	if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "ca_key.pem") {
		t.Errorf("error %v, want one that names what stands", err)
	}
	if read(t, dir, "ca_key.pem") != before {
		t.Error("the key changed")
	}
}

func TestCreateInAnEmptyFolderKeepsItsOwner(t *testing.T) {
	need.Root(t, "give a folder away")
	dir := filepath.Join(t.TempDir(), "ca")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 12345, 23456); err != nil {
		t.Fatal(err)
	}
	if err := directory.Create(dir, directory.CreateOptions{Host: "h", Key: ca.ECP256}); err != nil {
		t.Fatal(err)
	}
	if uid, gid := owner(t, filepath.Join(dir, "ca_key.pem")); uid != 12345 || gid != 23456 {
		t.Errorf("the key belongs to %d:%d, want 12345:23456", uid, gid)
	}
}

// TestCreateCutShort fails every write in turn: there is no half-made folder,
// and the next try succeeds.
func TestCreateCutShort(t *testing.T) {
	for step := range 10 {
		parent := t.TempDir()
		dir := filepath.Join(parent, "ca")
		o := directory.CreateOptions{Host: "h", Key: ca.ECP256, Intermediate: true, Disk: &faulty{failAt: step, dead: true}}
		if err := directory.Create(dir, o); !errors.Is(err, errFault) {
			t.Fatalf("write %d failed, Create says %v", step, err)
		}
		// A kill leaves the half-made folder where an error removes it.
		if err := os.MkdirAll(filepath.Join(parent, ".ca.espm-new-123", "signed"), 0o755); err != nil {
			t.Fatal(err)
		}
		o.Disk = nil
		if err := directory.Create(dir, o); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
			t.Errorf("beside the CA stands %v, %v", entries, err)
		}
	}
}

func certificates(t *testing.T, dir string) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for block, rest := pem.Decode([]byte(read(t, dir, "ca_crt.pem"))); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
	return certs
}
