package bootstrap

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/secret"
)

var bundle = Bundle{
	CertificatePEM: []byte("certificate"),
	PrivateKeyPEM:  secret.New([]byte("private key")),
	CAPEM:          []byte("ca"),
	CRLPEM:         []byte("crl"),
	PuppetConf:     Server{Name: "puppet.example.com", Port: 8140}.PuppetConf("web01", ""),
}

// What Write lays down is an agent's --confdir.
func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	check(t, bundle.Write(dir, "web01"))
	expectTree(t, dir, map[string]string{
		"puppet.conf":                "-rw-r--r-- # Written by espm for web01.\n[main]\nssldir = $confdir/ssl\ncertname = web01\nserver = puppet.example.com\nserverport = 8140\n",
		"ssl":                        "drwxr-xr-x",
		"ssl/certs":                  "drwxr-xr-x",
		"ssl/certs/ca.pem":           "-rw-r--r-- ca",
		"ssl/certs/web01.pem":        "-rw-r--r-- certificate",
		"ssl/crl.pem":                "-rw-r--r-- crl",
		"ssl/private_keys":           "drwxr-x---",
		"ssl/private_keys/web01.pem": "-rw------- private key",
	})
}

// Where the caller holds the key, it stays as it is.
func TestWriteKeepsTheCallersKey(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "ssl", "private_keys", "web01.pem")
	check(t, os.MkdirAll(filepath.Dir(key), 0o700))
	check(t, os.WriteFile(key, []byte("mine"), 0o400))
	check(t, CheckFree(dir, "web01"))
	b := bundle
	b.PrivateKeyPEM = secret.Text{}
	check(t, b.Write(dir, "web01"))
	if got, err := os.ReadFile(key); err != nil || string(got) != "mine" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestWriteFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	if err := bundle.Write(file, "web01"); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("into a file: %v", err)
	}
	dir := t.TempDir()
	taken := filepath.Join(dir, "ssl", "crl.pem")
	check(t, os.MkdirAll(filepath.Join(taken, "x"), 0o755))
	if err := bundle.Write(dir, "web01"); err == nil || !strings.Contains(err.Error(), taken) {
		t.Errorf("over a folder: %v", err)
	}
}

func TestCheckFree(t *testing.T) {
	for _, test := range []struct {
		what  string
		stand string // a file that stands in the folder
		free  bool
	}{
		{"empty folder", "", true},
		{"the caller's key", "ssl/private_keys/web01.pem", true},
		{"another node's certificate", "ssl/certs/web02.pem", true},
		{"a certificate", "ssl/certs/web01.pem", false},
		{"an agent's configuration", "puppet.conf", false},
	} {
		dir := t.TempDir()
		if test.stand != "" {
			path := filepath.Join(dir, test.stand)
			check(t, os.MkdirAll(filepath.Dir(path), 0o755))
			check(t, os.WriteFile(path, nil, 0o600))
		}
		err := CheckFree(dir, "web01")
		if (err == nil) != test.free || err != nil && !strings.Contains(err.Error(), filepath.Join(dir, test.stand)+" exists already") {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	if err := CheckFree(filepath.Join(t.TempDir(), "no", "such"), "web01"); err != nil {
		t.Errorf("no folder: %v", err)
	}
}

// A link that leads nowhere stands there too, and what can't be looked at is
// told before a certificate is issued for it.
func TestCheckFreeOfOddThings(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Symlink("nowhere", filepath.Join(dir, "puppet.conf")))
	if err := CheckFree(dir, "web01"); err == nil {
		t.Error("a link that leads nowhere is overlooked")
	}
	file := filepath.Join(dir, "file")
	check(t, os.WriteFile(file, nil, 0o600))
	if err := CheckFree(file, "web01"); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file in place of the folder: %v", err)
	}
}

// expectTree compares a folder with what each path in it has to be: its mode and its text.
func expectTree(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		got[name] = info.Mode().String()
		if !d.IsDir() {
			text, err := os.ReadFile(path)
			got[name] += " " + string(text)
			return err
		}
		return nil
	}))
	for name, is := range got {
		if is != want[name] {
			t.Errorf("%s is %q, want %q", name, is, want[name])
		}
	}
	for name, is := range want {
		if got[name] == "" {
			t.Errorf("%s is missing, want %q", name, is)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
