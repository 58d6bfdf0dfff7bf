//go:build !pkcs11

package pkcs11

import (
	"crypto"

	"github.com/espm-project/espm/internal/ca"
)

// BuiltIn tells whether this espm can use tokens.
const BuiltIn = false

// Key is one that no token can hold here.
type Key struct{ crypto.Signer }

// Open returns ErrNotBuiltIn.
func Open(URI) (*Key, error) { return nil, ErrNotBuiltIn }

// Generate returns ErrNotBuiltIn.
func Generate(URI, ca.KeyAlgorithm) (*Key, error) { return nil, ErrNotBuiltIn }

// Close does nothing.
func (*Key) Close() error { return nil }
