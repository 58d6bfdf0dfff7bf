//go:build pkcs11

package pkcs11_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/pkcs11"
	"github.com/espm-project/espm/internal/ca/pkcs11/softhsm"
	"github.com/espm-project/espm/internal/node"
)

func TestGenerate(t *testing.T) {
	token := softhsm.New(t)
	for _, alg := range []ca.KeyAlgorithm{ca.ECP256, ca.ECP384, ca.RSA2048} {
		t.Run(string(alg), func(t *testing.T) {
			key := generate(t, token.URI(string(alg)), alg)
			sign(t, key)
			again := generate(t, token.URI(string(alg)), ca.RSA4096) // one that is there is taken
			if !again.Public().(equaler).Equal(key.Public()) {
				t.Error("it was made twice")
			}
		})
	}
	seen := token.PrivateKeys(t)
	if n := strings.Count(seen, "sensitive, always sensitive, never extractable, local"); n != 3 || strings.Count(seen, "Usage:      sign\n") != 3 {
		t.Errorf("%d of 3 keys are the token's alone:\n%s", n, seen)
	}
	if _, err := pkcs11.Generate(token.URI("other"), "rsa-1024"); err == nil || !strings.Contains(err.Error(), `unknown algorithm "rsa-1024"`) {
		t.Errorf("got %v", err)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	token := softhsm.New(t)
	for _, id := range []string{"1", "2"} {
		u := token.URI("twice")
		u.ID = []byte(id)
		key, err := pkcs11.Generate(u, ca.ECP256)
		if err != nil {
			t.Fatal(err)
		}
		if err := key.Close(); err != nil { // while a process is logged in, it needs no PIN
			t.Fatal(err)
		}
	}
	change := func(change func(*pkcs11.URI)) pkcs11.URI {
		u := token.URI("ca")
		change(&u)
		return u
	}
	for want, u := range map[string]pkcs11.URI{
		"the token has no such key pair":                 token.URI("ca"),
		"the token has 2 such keys":                      token.URI("twice"),
		"could not find PKCS#11 token":                   change(func(u *pkcs11.URI) { u.Token = "gone" }),
		"failed to open module":                          change(func(u *pkcs11.URI) { u.Module = "/usr/lib/none.so" }),
		"cannot read PIN: open":                          change(func(u *pkcs11.URI) { u.PINSource += ".gone" }),
		"is open to everybody (mode 0644)":               change(func(u *pkcs11.URI) { u.PINSource = put(t, "1234", 0o644) }),
		"is empty":                                       change(func(u *pkcs11.URI) { u.PINSource = put(t, "\n", 0o600) }),
		"CKR_PIN_INCORRECT":                              change(func(u *pkcs11.URI) { u.PINSource = put(t, "4321", 0o600) }),
		`unavailable: CA key "x" in token "espm test": `: token.URI("x"),
	} {
		_, err := pkcs11.Open(u)
		if !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "4321") {
			t.Errorf("got %v, want one that is unavailable with %q", err, want)
		}
	}
}

// A token that is taken out fails what is asked of it meanwhile, and nothing more.
func TestTokenAway(t *testing.T) {
	token := softhsm.New(t)
	key := generate(t, token.URI("ca"), ca.ECP256)
	for range 3 {
		sign(t, key)
		token.Away(t)
		trySign(t, key, "could not find PKCS#11 token")
		token.Back(t)
		sign(t, key)
	}
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 20 {
				if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil && !errors.Is(err, node.ErrUnavailable) {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		token.Away(t)
		token.Back(t)
	}
	callers.Wait()
	sign(t, key)
}

// A token locks itself after some wrong PINs: one that it refused is not tried again.
func TestRefusedPIN(t *testing.T) {
	token := softhsm.New(t)
	key := generate(t, token.URI("ca"), ca.ECP256)
	token.SetPIN(t, "4321")
	token.Away(t)
	trySign(t, key, "could not find PKCS#11 token")
	token.Back(t)
	trySign(t, key, "CKR_PIN_INCORRECT")
	for range 20 {
		trySign(t, key, "espm does not retry it until the file changes")
	}
	token.SetPIN(t, softhsm.PIN)
	sign(t, key)
}

// What comes back under the same names must be the same key.
func TestAnotherKeyComesBack(t *testing.T) {
	token := softhsm.New(t)
	key := generate(t, token.URI("ca"), ca.ECP256)
	token.Away(t)
	trySign(t, key, "")
	other := softhsm.New(t) // with the environment's SOFTHSM2_CONF
	generate(t, other.URI("ca"), ca.ECP256)
	trySign(t, key, "the token has another key of that name now")
	token.Back(t)
}

type equaler interface{ Equal(crypto.PublicKey) bool }

func generate(t *testing.T, u pkcs11.URI, alg ca.KeyAlgorithm) *pkcs11.Key {
	t.Helper()
	key, err := pkcs11.Generate(u, alg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	})
	return key
}

// sign signs a digest and has it verified without the token.
func sign(t *testing.T, key *pkcs11.Key) {
	t.Helper()
	digest := sha256.Sum256([]byte("signed"))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	switch pub := key.Public().(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, digest[:], signature) {
			t.Error("the signature does not fit the key")
		}
	case *rsa.PublicKey:
		if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], signature); err != nil {
			t.Error(err)
		}
	default:
		t.Errorf("public key %T", pub)
	}
}

func trySign(t *testing.T, key *pkcs11.Key, want string) {
	t.Helper()
	_, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
	if !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want one that is unavailable with %q", err, want)
	}
}

func put(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin")
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}
