package node

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Token is a bearer token's record. The principal "token:NAME" owns the nodes that were registered with the token. So a
// name is never used for another token: the record stays after a revocation, and only gets a new secret by a rotation.
type Token struct {
	Name      string    `json:"name"`
	Role      Role      `json:"role"`
	Grant     Grant     `json:"grant"`
	Hash      string    `json:"hash"` // SHA-256 of the token's text, hexadecimal
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`          // the principal
	RotatedAt time.Time `json:"rotated_at,omitzero"` // when the secret was last replaced
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
	RevokedAt time.Time `json:"revoked_at,omitzero"` // zero: live
	UsedAt    time.Time `json:"-"`                   // the last use, as stored
	Revision  int64     `json:"-"`
}

// Principal returns the name of the token's principal.
func (t Token) Principal() string { return "token:" + t.Name }

// Live reports whether the token is neither revoked nor expired at a time.
func (t Token) Live(now time.Time) bool {
	return t.RevokedAt.IsZero() && (t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt))
}

// maxTokenName bounds a token's name, in bytes.
const maxTokenName = 64

// CheckTokenName: 1 to 64 of a-z, 0-9, ".", "_" and "-", the first a letter or a digit.
func CheckTokenName(field, name string) error {
	ok := name != "" && len(name) <= maxTokenName && !strings.ContainsAny(name[:1], "._-")
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c))
	}
	if !ok {
		return Invalid(field, "%s: 1 to %d of a-z, 0-9, '.', '_' and '-', the first a letter or a digit", clip(name), maxTokenName)
	}
	return nil
}

// ParseRole reads a role's name.
func ParseRole(field, name string) (Role, error) {
	if r := Role(name); slices.Contains(Roles, r) {
		return r, nil
	}
	return "", Invalid(field, "%s: must be one of %s, %s, %s", clip(name), Roles[0], Roles[1], Roles[2])
}

// Bounds of a Grant.
const (
	maxGranted     = 100 // entries of a list
	maxGrantedText = 255 // bytes of an entry
	maxRate        = 1e6
	maxOpen        = 10_000
)

// Check checks a grant's bounds, and that only a provisioner has limits. at is a prefix for the fields' names in errors.
func (g Grant) Check(at string, role Role) error {
	var c checks
	for _, list := range []struct {
		field  string
		values []string
		empty  bool // may hold ""
	}{{"names", g.Names, false}, {"environments", g.Environments, true}, {"groups", g.Groups, false}, {"extensions", g.Extensions, false}} {
		field := at + list.field
		if list.values != nil && role != Provisioner {
			c.add(field, "confines a %s, not a role of %q", Provisioner, role)
		}
		if len(list.values) > maxGranted {
			c.add(field, "%d entries at most, has %d", maxGranted, len(list.values))
			continue
		}
		for i, v := range list.values {
			if v == "" && !list.empty || len(v) > maxGrantedText || strings.ContainsFunc(v, notPlain) {
				c.add(fmt.Sprintf("%s[%d]", field, i), "%s: 1 to %d printable ASCII characters without white space", clip(v), maxGrantedText)
			}
		}
	}
	if g.MaxTTL != 0 && role != Provisioner {
		c.add(at+"max_ttl", "confines a %s, not a role of %q", Provisioner, role)
	}
	if g.MaxTTL < 0 {
		c.add(at+"max_ttl", "must not be negative, is %v", Duration(g.MaxTTL))
	}
	if r := g.RequestsPerSecond; r < 0 || r > maxRate || math.IsNaN(r) {
		c.add(at+"requests_per_second", "from 0 to %d, is %v", int(maxRate), r)
	}
	if g.OpenProvisions < 0 || g.OpenProvisions > maxOpen {
		c.add(at+"open_provisions", "from 0 to %d, is %d", maxOpen, g.OpenProvisions)
	}
	return c.err()
}

func notPlain(r rune) bool { return r <= ' ' || r > '~' }
