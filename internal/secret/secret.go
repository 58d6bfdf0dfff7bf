// Package secret has a type for private keys and tokens, which must not be printed by accident.
package secret

import (
	"fmt"
	"io"
)

const redacted = "[redacted]"

// Text is a secret that prints, logs and encodes as "[redacted]". The secret is in
// a closure, because fmt calls no methods on unexported fields: it would print
// the bytes there, even behind a pointer, but of a function it prints only the address. The
// zero Text has no secret. Only Bytes returns the secret.
type Text struct{ reveal func() []byte }

// New returns a Text with the secret, which it does not copy. nil gives the zero Text.
func New(text []byte) Text {
	if text == nil {
		return Text{}
	}
	return Text{func() []byte { return text }}
}

// Bytes returns the secret, nil if there is none.
func (t Text) Bytes() []byte {
	if t.reveal == nil {
		return nil
	}
	return t.reveal()
}

// IsZero reports whether there is no secret.
func (t Text) IsZero() bool { return t.reveal == nil }

// String redacts the secret.
func (Text) String() string { return redacted }

// GoString redacts the secret.
func (Text) GoString() string { return redacted }

// Format redacts the secret, whatever the verb.
func (Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText redacts the secret, in JSON, YAML and logs as well.
func (Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }
