package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/espm-project/espm/internal/node"
)

// KeyAlgorithm names a kind of key that espm generates.
type KeyAlgorithm string

// The algorithms of a node's key. Agents of Puppet 7 and 8 can generate the same
// kinds (settings key_type, named_curve and keylength).
const (
	ECP256  KeyAlgorithm = "ec-p256" // the default
	RSA2048 KeyAlgorithm = "rsa-2048"
	RSA3072 KeyAlgorithm = "rsa-3072"
	RSA4096 KeyAlgorithm = "rsa-4096" // an agent's own default
)

// ECP384 is a further algorithm, for a CA's own key only.
const ECP384 KeyAlgorithm = "ec-p384"

// KeyAlgorithms lists the choices, the default first.
func KeyAlgorithms() []KeyAlgorithm { return []KeyAlgorithm{ECP256, RSA2048, RSA3072, RSA4096} }

// ParseKeyAlgorithm checks the name of an algorithm; "" is the default. The
// error is a *node.InvalidError on field "key_algorithm".
func ParseKeyAlgorithm(s string) (KeyAlgorithm, error) {
	if s == "" {
		return ECP256, nil
	}
	if !slices.Contains(KeyAlgorithms(), KeyAlgorithm(s)) {
		return "", node.Invalid("key_algorithm", "%s: must be one of %s", node.Quote(s), list(KeyAlgorithms()))
	}
	return KeyAlgorithm(s), nil
}

func list(algs []KeyAlgorithm) string {
	names := make([]string, len(algs))
	for i, a := range algs {
		names[i] = string(a)
	}
	return strings.Join(names, ", ")
}

// Curve returns the curve of an EC algorithm, else nil.
func (a KeyAlgorithm) Curve() elliptic.Curve {
	switch a {
	case ECP256:
		return elliptic.P256()
	case ECP384:
		return elliptic.P384()
	}
	return nil
}

// Bits returns the length of an RSA algorithm's modulus, else 0.
func (a KeyAlgorithm) Bits() int {
	switch a {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	}
	return 0
}

// GenerateKey generates a key. RSA keys are slow: one of 4096 bits takes a second or more.
func GenerateKey(alg KeyAlgorithm) (*Key, error) {
	var s crypto.Signer
	var err error
	if curve := alg.Curve(); curve != nil {
		s, err = ecdsa.GenerateKey(curve, rand.Reader)
	} else if bits := alg.Bits(); bits != 0 {
		s, err = rsa.GenerateKey(rand.Reader, bits)
	} else {
		err = fmt.Errorf("unknown algorithm %q", alg)
	}
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return NewKey(s), nil
}

// Key is a private key. Printed, logged or encoded, it shows "redacted".
// Only MarshalKeyPEM returns the key itself.
type Key struct{ signer crypto.Signer }

// NewKey wraps an *rsa.PrivateKey or *ecdsa.PrivateKey.
func NewKey(s crypto.Signer) *Key { return &Key{signer: s} }

// Public returns the public key.
func (k Key) Public() crypto.PublicKey { return k.signer.Public() }

// Sign signs as the wrapped key does.
func (k Key) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.signer.Sign(random, digest, opts)
}

const redacted = "[private key: redacted]"

// String returns a placeholder.
func (Key) String() string { return redacted }

// GoString returns a placeholder.
func (Key) GoString() string { return redacted }

// Format writes a placeholder, whatever the verb.
func (Key) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText returns a placeholder. The encoders of JSON and YAML call it.
func (Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalKeyPEM encodes a private key as Puppet itself writes it: SEC 1 ("EC
// PRIVATE KEY", RFC 5915) or PKCS #1 ("RSA PRIVATE KEY", RFC 8017). Agents of
// Puppet 7 and 8 load both with OpenSSL::PKey.read.
func MarshalKeyPEM(s crypto.Signer) ([]byte, error) {
	if k, ok := s.(*Key); ok {
		s = k.signer
	}
	switch key := s.(type) {
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encode private key: %w", err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
	case *rsa.PrivateKey:
		der := x509.MarshalPKCS1PrivateKey(key)
		return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der}), nil
	default:
		return nil, fmt.Errorf("encode private key: %T has no PEM form that Puppet reads", s)
	}
}

// KeyHash returns the SHA-256 of a public key's SubjectPublicKeyInfo (RFC
// 5280 section 4.1.2.7), in hex.
func KeyHash(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("hash public key: %w", err)
	}
	return HashOf(der), nil
}

// HashOf is KeyHash of a SubjectPublicKeyInfo in DER.
func HashOf(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}
