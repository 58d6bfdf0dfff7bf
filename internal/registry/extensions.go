package registry

import (
	"slices"
	"strings"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Principals are the callers that the configuration lists by what their certificate says.
type Principals struct {
	Certnames []string
	AuthRoles []string // values of the extension pp_auth_role
}

// SetPrincipals replaces Options.Principals. A call that has begun may still use the old ones.
func (cs *certnames) SetPrincipals(p Principals) { cs.principals.Store(&p) }

// granted is an entry of a grant's list of extensions: an extension with any value, or with one.
type granted struct {
	name  string // a short name or an OID
	value string
	bound bool // only value is granted
}

func parseGranted(entry string) granted {
	var g granted
	g.name, g.value, g.bound = strings.Cut(entry, "=")
	return g
}

func (g granted) covers(e ca.Extension) bool {
	return (g.name == ca.ExtensionName(e.ID) || g.name == e.ID.String()) && (!g.bound || g.value == e.Value)
}

// reserved returns why only an admin may get a certificate with an extension; empty if others may.
func (cs *certnames) reserved(e ca.Extension) string {
	switch {
	case e.ID.Equal(ca.PPAuthRole) && slices.Contains(cs.principals.Load().AuthRoles, e.Value):
		return "a principal of espm is known by that value"
	case e.ID.Equal(ca.PPCliAuth):
		return "Puppet Server lets its holder sign certificates of any name"
	}
	return ""
}

// mayExtend checks one extension of a certificate that a confined caller asks for.
func (cs *certnames) mayExtend(a access, e ca.Extension) error {
	field := "extensions[" + ca.ExtensionName(e.ID) + "]"
	if why := cs.reserved(e); why != "" {
		return node.NotPermitted(field, "%q: %s, so only an admin gets a certificate with it", e.Value, why)
	}
	if !a.extended(e) {
		return node.NotPermitted(field, "%q is none of the extensions granted to %s", e.Value, a.Name)
	}
	return nil
}

// ReviewGrant looks at the extensions of a grant. It returns an error that wraps node.ErrInvalid if the grant has a value
// that only an admin may get, and a warning for each extension that gives rights and is granted with any value.
func (cs *certnames) ReviewGrant(g node.Grant) (warnings []string, err error) {
	var bad []error
	for _, entry := range g.Extensions {
		one := parseGranted(entry)
		exts, err := ca.ParseExtensions(map[string]string{one.name: "any"})
		if err != nil {
			continue // no request can ask for it
		}
		e := ca.Extension{ID: exts[0].ID, Value: one.value}
		if why := cs.reserved(e); why != "" {
			bad = append(bad, node.Invalid("grant.extensions", "%s can't be granted: %s, so only an admin gets a certificate with it", entry, why))
		} else if e.GrantsAuthorization() && !one.bound {
			warnings = append(warnings, "the grant of "+entry+" has no value: its holder chooses the value, and Puppet grants rights by it; write "+entry+"=VALUE")
		}
	}
	return warnings, node.Join(bad...)
}
