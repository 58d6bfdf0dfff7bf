// Package pkcs11 signs with a key in a PKCS #11 token. The key never leaves the token. The package
// needs C, and only with the build tag pkcs11, so that espm is static without the tag.
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

// ErrNotBuiltIn is the error of an espm that was built without the tag.
var ErrNotBuiltIn = errors.New("this espm was built without PKCS #11; build it with: CGO_ENABLED=1 go build -tags pkcs11 ./cmd/espm")

// URI names a private key in a token, like a URI of RFC 7512.
type URI struct {
	Token     string // the token's label
	Object    string // the key's label (CKA_LABEL); "": only the ID names it
	ID        []byte // the key's CKA_ID; nil: only Object names it
	Module    string // absolute path of the module, a shared library
	PINSource string // absolute path of the file that has the PIN
}

// Scheme is the beginning of such a URI.
const Scheme = "pkcs11:"

// maxURI is the longest URI, both as it is given and as String returns it.
const maxURI = 4096

var errTooLong = fmt.Errorf("must have at most %d bytes, percent-encoded", maxURI)

// ParseURI reads "pkcs11:token=T;object=O?module-path=/M&pin-source=/P". It may have id besides
// object or instead of it. Values are percent-encoded if they have other characters than
// letters, digits and -._~ (in the query also /). Other attributes of RFC 7512 are refused, and so is a PIN in
// the URI. Errors do not contain values.
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

// split reads name=value pairs. Each name may occur once.
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
		decoded, err := url.PathUnescape(value) // it leaves a + unchanged
		if err != nil || decoded == "" {
			return nil, fmt.Errorf("%s: must not be empty, and percent-encoded well", name)
		}
		pairs[name] = decoded
	}
	return pairs, nil
}

// String returns the URI, which has no secret.
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
