package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"go.yaml.in/yaml/v3"
)

var bundle = Bundle{
	CertificatePEM: []byte("certificate"),
	PrivateKeyPEM:  Secret("private key"),
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
	b.PrivateKeyPEM = nil
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
		if (err == nil) != test.free || err != nil && !strings.Contains(err.Error(), filepath.Join(dir, test.stand)+" stands already") {
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

// A private key is never printed, whoever tries, and however deep it lies.
func TestSecretIsRedacted(t *testing.T) {
	secret := Secret("hush")
	b := Bundle{PrivateKeyPEM: secret}
	var out []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%c", "%08b", "%U"} {
		for _, v := range []any{secret, &secret, b, &b, []Secret{secret}, map[string]Secret{"k": secret}, fmt.Errorf("wrapped: %v", secret)} {
			out = append(out, fmt.Sprintf(verb, v))
		}
	}
	for _, f := range []logrus.Formatter{&logrus.TextFormatter{}, &logrus.JSONFormatter{}} {
		var text strings.Builder
		log := logrus.New()
		log.SetOutput(&text)
		log.SetFormatter(f)
		log.WithFields(logrus.Fields{"key": secret, "bundle": b, "pointer": &secret}).Error(secret, b)
		out = append(out, text.String())
	}
	for _, marshal := range []func(any) ([]byte, error){json.Marshal, yaml.Marshal} {
		for _, v := range []any{secret, &secret, b, map[string]any{"k": secret}} {
			text, err := marshal(v)
			check(t, err)
			out = append(out, string(text))
		}
	}
	out = append(out, fmt.Sprint(secret), fmt.Sprintln(b), secret.String(), errors.New(secret.String()).Error())
	for _, text := range out {
		for _, leak := range []string{"hush", "68757368", "aHVzaA", "104", "0x68", "01101000", "U+0068"} {
			if strings.Contains(text, leak) {
				t.Errorf("%q has %q", text, leak)
			}
		}
	}
	if got := fmt.Sprintf("%s %d %#v", secret, secret, secret); got != "[redacted] [redacted] [redacted]" {
		t.Errorf("got %q", got)
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
