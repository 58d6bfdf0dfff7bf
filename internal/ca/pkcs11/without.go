//go:build !pkcs11

package pkcs11

import (
	"crypto"

	"github.com/espm-project/espm/internal/ca"
)

// BuiltIn says whether this espm can use tokens.
const BuiltIn = false

// Key is never returned by this build.
type Key struct{ crypto.Signer }

// Open returns ErrNotBuiltIn.
func Open(URI) (*Key, error) { return nil, ErrNotBuiltIn }

// Generate returns ErrNotBuiltIn.
func Generate(URI, ca.KeyAlgorithm) (*Key, error) { return nil, ErrNotBuiltIn }

// Close does nothing.
func (*Key) Close() error { return nil }
