//go:build pkcs11

package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/secretfile"
)

// BuiltIn says whether this espm can use tokens.
const BuiltIn = true

// sessions is the most sessions with a token at once, as smart cards have few.
const sessions = 8

// Key is a key in a token, a crypto.Signer. Its methods except Close may be called concurrently.
type Key struct {
	uri    URI
	public crypto.PublicKey

	mu      sync.RWMutex // locked for reading to sign, for writing to reconnect
	token   *crypto11.Context
	signer  crypto.Signer
	refused [sha256.Size]byte // hash of the PIN that the token refused last
}

// Open logs into the token and finds the key. Errors wrap node.ErrUnavailable, as the token may
// be available later.
func Open(u URI) (*Key, error) { return open(u, (*Key).find) }

// Generate opens the key. If the token has no key of that name, Generate makes one that can
// only sign, and that never leaves the token.
func Generate(u URI, alg ca.KeyAlgorithm) (*Key, error) {
	return open(u, func(k *Key, token *crypto11.Context) (crypto.Signer, error) {
		signer, err := k.find(token)
		if !errors.Is(err, errNoKey) {
			return signer, err
		}
		return generate(token, u, alg)
	})
}

func open(u URI, get func(*Key, *crypto11.Context) (crypto.Signer, error)) (*Key, error) {
	k := &Key{uri: u}
	if err := k.connect(get); err != nil {
		return nil, k.explain(err)
	}
	k.public = k.signer.Public()
	return k, nil
}

// Public returns the public key, even while the token is unavailable.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign signs with the token. If that fails, it logs into the token again and retries once. While the token is
// unavailable, the error wraps node.ErrUnavailable.
func (k *Key) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, token, err := k.sign(random, digest, opts)
	if err == nil {
		return signature, nil
	}
	if err := k.reconnect(token); err != nil {
		return nil, k.explain(err)
	}
	if signature, _, err = k.sign(random, digest, opts); err != nil {
		return nil, k.explain(err)
	}
	return signature, nil
}

func (k *Key) sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, *crypto11.Context, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.token == nil {
		return nil, nil, errors.New("not connected")
	}
	signature, err := k.signer.Sign(random, digest, opts)
	return signature, k.token, err
}

// reconnect replaces a connection that failed, unless another call did.
func (k *Key) reconnect(failed *crypto11.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.token != nil && k.token != failed {
		return nil
	}
	if err := k.disconnect(); err != nil {
		return err
	}
	if err := k.connect((*Key).find); err != nil {
		return err
	}
	if same, ok := k.public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(k.signer.Public()) {
		return errors.Join(errors.New("the token has another key of that name now"), k.disconnect())
	}
	return nil
}

// Close logs out. No other call may run.
func (k *Key) Close() error { return k.disconnect() }

func (k *Key) disconnect() error {
	token := k.token
	if k.token, k.signer = nil, nil; token == nil {
		return nil
	}
	return token.Close()
}

func (k *Key) connect(get func(*Key, *crypto11.Context) (crypto.Signer, error)) error {
	pin, err := secretfile.Read("PIN", k.uri.PINSource)
	if err != nil {
		return err
	}
	pin = bytes.TrimRight(pin, "\r\n")
	if len(pin) == 0 {
		return fmt.Errorf("PIN %s is empty", k.uri.PINSource)
	}
	if sha256.Sum256(pin) == k.refused {
		return fmt.Errorf("the token refused the PIN of %s; espm does not retry it until the file changes, as a token locks itself after a few wrong PINs", k.uri.PINSource)
	}
	token, err := crypto11.Configure(&crypto11.Config{Path: k.uri.Module, TokenLabel: k.uri.Token, Pin: string(pin), MaxSessions: sessions})
	if err != nil {
		if code, ok := errors.AsType[pkcs11.Error](err); ok && code == pkcs11.CKR_PIN_INCORRECT {
			k.refused = sha256.Sum256(pin)
		}
		return fmt.Errorf("module %s: %w", k.uri.Module, err)
	}
	signer, err := get(k, token)
	if err != nil {
		return errors.Join(err, token.Close())
	}
	k.token, k.signer = token, signer
	return nil
}

var errNoKey = errors.New("the token has no such key pair; it must have the public and the private key")

func (k *Key) find(token *crypto11.Context) (crypto.Signer, error) {
	keys, err := token.FindKeyPairs(k.uri.ID, []byte(k.uri.Object))
	if err != nil {
		return nil, err
	}
	switch len(keys) {
	case 0:
		return nil, errNoKey
	case 1:
		return keys[0], nil
	}
	return nil, fmt.Errorf("the token has %d such keys; name one by object and id", len(keys))
}

// explain wraps every error as node.ErrUnavailable: an operator can make the token, its slot or its PIN
// available again.
func (k *Key) explain(err error) error {
	return fmt.Errorf("%w: CA key %s in token %q: %w", node.ErrUnavailable, k.uri.key(), k.uri.Token, err)
}

// key returns the key's label and ID.
func (u URI) key() string {
	switch {
	case u.ID == nil:
		return fmt.Sprintf("%q", u.Object)
	case u.Object == "":
		return fmt.Sprintf("%X", u.ID)
	}
	return fmt.Sprintf("%q (%X)", u.Object, u.ID)
}

func generate(token *crypto11.Context, u URI, alg ca.KeyAlgorithm) (crypto.Signer, error) {
	id := u.ID
	if id == nil {
		id = make([]byte, 8)
		rand.Read(id) // never fails
	}
	public, err := crypto11.NewAttributeSetWithID(id)
	if err != nil {
		return nil, err
	}
	if u.Object != "" {
		if err := public.Set(crypto11.CkaLabel, []byte(u.Object)); err != nil {
			return nil, err
		}
	}
	private := public.Copy()
	// By default, a token allows all uses of a key.
	if err := errors.Join(
		public.Set(crypto11.CkaEncrypt, false), public.Set(crypto11.CkaWrap, false),
		private.Set(crypto11.CkaDecrypt, false), private.Set(crypto11.CkaUnwrap, false),
	); err != nil {
		return nil, err
	}
	if curve := alg.Curve(); curve != nil {
		return token.GenerateECDSAKeyPairWithAttributes(public, private, curve)
	}
	if alg.Bits() == 0 {
		return nil, fmt.Errorf("unknown algorithm %q", alg)
	}
	return token.GenerateRSAKeyPairWithAttributes(public, private, alg.Bits())
}
