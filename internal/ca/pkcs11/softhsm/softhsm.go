//go:build pkcs11

// Package softhsm makes tokens for tests, of SoftHSM (Debian: softhsm2, opensc). With the tag
// pkcs11 its absence is a failure, no skip.
package softhsm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/ca/pkcs11"
)

// Token is one with a PIN, that can be taken away.
type Token struct {
	Label   string
	PINFile string
	Module  string

	dir string
}

// PIN of every token.
const PIN = "1234"

// New makes an empty token. It sets the environment of the test.
func New(t *testing.T) *Token {
	t.Helper()
	dir := t.TempDir()
	k := &Token{Label: "espm test", PINFile: filepath.Join(dir, "pin"), dir: filepath.Join(dir, "tokens"), Module: module(t)}
	conf := filepath.Join(dir, "softhsm2.conf")
	t.Setenv("SOFTHSM2_CONF", conf)
	write(t, conf, "directories.tokendir = "+k.dir+"\nobjectstore.backend = file\nlog.level = ERROR\n")
	write(t, k.PINFile, PIN+"\n")
	if err := os.Mkdir(k.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "softhsm2-util", "--init-token", "--free", "--label", k.Label, "--so-pin", "5678", "--pin", PIN)
	return k
}

func module(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatal("SoftHSM is not installed: apt install softhsm2 opensc")
	return ""
}

// URI names a key in the token.
func (k *Token) URI(object string) pkcs11.URI {
	return pkcs11.URI{Token: k.Label, Object: object, Module: k.Module, PINSource: k.PINFile}
}

// Away takes the token out; Back puts it in again.
func (k *Token) Away(t *testing.T) { rename(t, k.dir, k.dir+".away", true) }

// Back puts the token in again.
func (k *Token) Back(t *testing.T) { rename(t, k.dir+".away", k.dir, false) }

// rename leaves an empty folder behind, as SoftHSM does not start without one.
func rename(t *testing.T, from, to string, leave bool) {
	t.Helper()
	if !leave {
		if err := os.Remove(to); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
	if leave {
		if err := os.Mkdir(from, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// SetPIN changes what the file says, not the token.
func (k *Token) SetPIN(t *testing.T, pin string) { write(t, k.PINFile, pin) }

// Import puts a key, PKCS #8 in PEM, into the token, with its public half.
func (k *Token) Import(t *testing.T, path, object, id string) {
	t.Helper()
	run(t, "softhsm2-util", "--import", path, "--token", k.Label, "--label", object, "--id", id, "--pin", PIN)
}

// PrivateKeys says what another program sees of the token's private keys.
func (k *Token) PrivateKeys(t *testing.T) string {
	t.Helper()
	return run(t, "pkcs11-tool", "--module", k.Module, "--token-label", k.Label, "--login", "--pin", PIN, "--list-objects", "--type", "privkey")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatal(fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out))
	}
	return string(out)
}
