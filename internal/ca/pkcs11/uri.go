// Package pkcs11 signs with a key that a PKCS #11 token holds and never gives away. What it
// needs of C is built in with the tag pkcs11 alone, so that espm is static without it.
package pkcs11

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrNotBuiltIn is the answer of an espm that was built without the tag.
var ErrNotBuiltIn = errors.New("this espm was built without PKCS #11; build it with: CGO_ENABLED=1 go build -tags pkcs11 ./cmd/espm")

// URI names a private key in a token, as RFC 7512 spells it.
type URI struct {
	Token     string // the token's label
	Object    string // the key's label (CKA_LABEL); "": ID alone tells it
	ID        []byte // the key's CKA_ID; nil: Object alone tells it
	Module    string // absolute path of the module, a shared library
	PINSource string // absolute path of the file that has the PIN
}

// Scheme is how such a URI begins.
const Scheme = "pkcs11:"

// maxURI bounds a URI, as it was given and as String spells it: two labels, an ID and two paths have less.
const maxURI = 4096

var errTooLong = fmt.Errorf("must have at most %d bytes, percent-encoded", maxURI)

// ParseURI reads "pkcs11:token=T;object=O?module-path=/M&pin-source=/P", in which id may
// stand beside or in place of object. Each is percent-encoded where it has other characters than
// letters, digits and -._~ (in the query also /). What else RFC 7512 has is refused, as is a PIN in
// the URI itself. The error does not repeat a value.
func ParseURI(s string) (URI, error) {
	rest, ok := strings.CutPrefix(s, Scheme)
	if !ok {
		return URI{}, errors.New("must be a PKCS #11 URI (RFC 7512), such as pkcs11:token=espm;object=ca?module-path=/M&pin-source=/P")
	}
	if len(s) > maxURI {
		return URI{}, errTooLong
	}
	path, query, _ := strings.Cut(rest, "?")
	attributes, err := split(path, ";", "token", "object", "id", "type")
	if err != nil {
		return URI{}, err
	}
	options, err := split(query, "&", "module-path", "pin-source")
	if err != nil {
		return URI{}, err
	}
	if kind, set := attributes["type"]; set && kind != "private" {
		return URI{}, errors.New("type: must be private or left out")
	}
	u := URI{
		Token: attributes["token"], Object: attributes["object"], ID: []byte(attributes["id"]),
		Module: options["module-path"], PINSource: strings.TrimPrefix(options["pin-source"], "file:"),
	}
	if len(u.ID) == 0 {
		u.ID = nil
	}
	return u, u.check()
}

func (u URI) check() error {
	switch {
	case u.Token == "":
		return errors.New("token: must be set: the token's label")
	case u.Object == "" && u.ID == nil:
		return errors.New("object: must be set, or id: the key's label or CKA_ID")
	case !filepath.IsAbs(u.Module):
		return errors.New("module-path: must be set: the absolute path of the token's module, such as /usr/lib/softhsm/libsofthsm2.so")
	case !filepath.IsAbs(u.PINSource):
		return errors.New("pin-source: must be set: the absolute path of a file that has the PIN")
	}
	for name, text := range map[string]string{"token": u.Token, "object": u.Object, "module-path": u.Module, "pin-source": u.PINSource} {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("%s: must be text without control characters", name)
		}
	}
	if len(u.String()) > maxURI {
		return errTooLong
	}
	return nil
}

// split reads name=value pairs, each of which may stand there once.
func split(s, by string, known ...string) (map[string]string, error) {
	pairs := make(map[string]string)
	if s == "" {
		return pairs, nil
	}
	for part := range strings.SplitSeq(s, by) {
		name, value, ok := strings.Cut(part, "=")
		switch {
		case name == "pin-value":
			return nil, errors.New("pin-value: is refused, as whoever reads the configuration would have the PIN; use pin-source=/PATH of a file")
		case !ok || !slices.Contains(known, name):
			return nil, fmt.Errorf("%.40q: is none of the attributes that espm takes here: %s", name, strings.Join(known, ", "))
		}
		if _, twice := pairs[name]; twice {
			return nil, fmt.Errorf("%s: stands there twice", name)
		}
		decoded, err := url.PathUnescape(value) // a + stands for itself
		if err != nil || decoded == "" {
			return nil, fmt.Errorf("%s: must not be empty, and percent-encoded well", name)
		}
		pairs[name] = decoded
	}
	return pairs, nil
}

// String spells the URI, which holds no secret.
func (u URI) String() string {
	s := Scheme + "token=" + escape(u.Token, "")
	if u.Object != "" {
		s += ";object=" + escape(u.Object, "")
	}
	if u.ID != nil {
		s += ";id=" + escape(string(u.ID), "")
	}
	return s + "?module-path=" + escape(u.Module, "/") + "&pin-source=" + escape(u.PINSource, "/")
}

func escape(s, also string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(plain+also, s[i]) >= 0 {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}
