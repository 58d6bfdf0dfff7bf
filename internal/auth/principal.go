package auth

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/espm-project/espm/internal/node"
)

// Principal lets callers in by their certificate: the one of a certname, or
// all whose certificate carries an authorization role. One of the two is set.
type Principal struct {
	Certname node.Certname
	AuthRole string // the extension pp_auth_role
	Role     node.Role
	Grant    node.Grant
}

// Principals are those that the configuration lists. The zero one lets nobody in.
type Principals struct {
	byName map[node.Certname]Principal
	byRole map[string]Principal
}

// NewPrincipals refuses one that is listed twice, so that the order does not count.
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

// ppAuthRole is Puppet's extension of that name:
// https://www.puppet.com/docs/puppet/7/ssl_attributes_extensions.html
var ppAuthRole = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 34380, 1, 3, 13}

// Caller returns who shows a verified certificate. One listed by its certname
// is that principal, whatever roles the certificate carries; else its
// authorization role counts. Where neither is listed the caller has no role.
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

// certname: a second CN would let two readers of the certificate see two names.
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

// authRole returns "" for none, and for one that is no string.
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
