package auth

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/espm-project/espm/internal/node"
)

// Principal gives a role to callers by their certificate. The certificate must have the certname or the authorization
// role. Exactly one of the two fields is set.
type Principal struct {
	Certname node.Certname
	AuthRole string // the extension pp_auth_role
	Role     node.Role
	Grant    node.Grant
}

// Principals are the principals of the configuration. The zero value lets nobody in.
type Principals struct {
	byName map[node.Certname]Principal
	byRole map[string]Principal
}

// NewPrincipals returns an error if an entry is listed twice, so that the order of the list has no effect.
func NewPrincipals(list []Principal) (Principals, error) {
	p := Principals{map[node.Certname]Principal{}, map[string]Principal{}}
	for i, one := range list {
		_, named := p.byName[one.Certname]
		_, roled := p.byRole[one.AuthRole]
		switch {
		case (one.Certname == "") == (one.AuthRole == ""):
			return p, fmt.Errorf("principals[%d]: exactly one of certname and auth_role must be set", i)
		case named:
			return p, fmt.Errorf("principals[%d].certname: %q is listed twice", i, one.Certname)
		case roled:
			return p, fmt.Errorf("principals[%d].auth_role: %q is listed twice", i, one.AuthRole)
		case one.Certname != "":
			p.byName[one.Certname] = one
		default:
			p.byRole[one.AuthRole] = one
		}
	}
	return p, nil
}

// ppAuthRole is Puppet's extension pp_auth_role:
// https://www.puppet.com/docs/puppet/7/ssl_attributes_extensions.html
var ppAuthRole = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 34380, 1, 3, 13}

// Caller returns the caller with a verified certificate. A principal with the certname wins over a principal with the
// certificate's authorization role. If neither is listed, the caller has no role.
func (p Principals) Caller(cert *x509.Certificate) node.Caller {
	name, err := certname(cert)
	if err != nil {
		return node.Caller{}
	}
	c := node.Caller{Name: "certname:" + string(name)}
	one, found := p.byName[name]
	if !found {
		one, found = p.byRole[authRole(cert)]
	}
	if found {
		c.Role, c.Grant = one.Role, one.Grant
	}
	return c
}

// certname refuses a second CN: two programs could then read two different names.
func certname(cert *x509.Certificate) (node.Certname, error) {
	names := 0
	for _, attribute := range cert.Subject.Names {
		if attribute.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			names++
		}
	}
	if names != 1 {
		return "", fmt.Errorf("the subject has %d common names, not one", names)
	}
	return node.ParseCertname(cert.Subject.CommonName)
}

// authRole returns "" if the certificate has no authorization role, or one that is not a string.
func authRole(cert *x509.Certificate) string {
	for _, e := range cert.Extensions {
		if !e.Id.Equal(ppAuthRole) {
			continue
		}
		var value string
		if rest, err := asn1.Unmarshal(e.Value, &value); err != nil || len(rest) > 0 {
			return ""
		}
		return value
	}
	return ""
}
