// Package secret holds what must not show itself by accident: private keys, tokens.
package secret

import (
	"fmt"
	"io"
)

const redacted = "[redacted]"

// Text is a secret that prints, logs and encodes as "[redacted]". It lies behind
// a function, as fmt asks no method of a value in an unexported field: from there
// it prints what it finds, through pointers too, but of a function the address. The
// zero Text is none. Bytes alone gives it away.
type Text struct{ reveal func() []byte }

// New keeps a secret, without a copy; none where it is nil.
func New(text []byte) Text {
	if text == nil {
		return Text{}
	}
	return Text{func() []byte { return text }}
}

// Bytes gives the secret away; nil where there is none.
func (t Text) Bytes() []byte {
	if t.reveal == nil {
		return nil
	}
	return t.reveal()
}

// IsZero tells that there is no secret.
func (t Text) IsZero() bool { return t.reveal == nil }

// String redacts the secret.
func (Text) String() string { return redacted }

// GoString redacts the secret.
func (Text) GoString() string { return redacted }

// Format redacts the secret, whatever the verb.
func (Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText redacts the secret, in JSON, YAML and logs as well.
func (Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }
