package registry

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// certnames has the reserved names: those that are never terminated, and those whose certificates only an admin
// may get.
type certnames struct {
	core
	puppet     string                   // the Puppet Server's own
	protected  atomic.Pointer[[]string] // Options.Protected, or the names that SetProtected gave
	traits     func() ca.Traits         // of the authority, which protects names of its own
	principals atomic.Pointer[Principals]
	served     func() []string // Options.Served
	ttl        time.Duration   // of a certificate whose request names none
}

// SetProtected replaces Options.Protected. A call that has begun may still use the old names.
func (cs *certnames) SetProtected(names []string) { cs.protected.Store(&names) }

// protection returns why a name is never terminated; empty if it may be terminated.
func (cs *certnames) protection(name node.Certname) string {
	switch {
	case string(name) == cs.puppet:
		return "it is puppet.server"
	case slices.Contains(*cs.protected.Load(), string(name)):
		return "it is listed in protected_certnames"
	case slices.Contains(cs.traits().Protected, name):
		return "it is a name of the CA's host, or one that the CA works with"
	}
	return ""
}

// unprotected returns node.ErrProtected for a name that is never terminated.
func (cs *certnames) unprotected(name node.Certname) error {
	if why := cs.protection(name); why != "" {
		return fmt.Errorf("%w: %q: %s", node.ErrProtected, name, why)
	}
	return nil
}

// offLimits returns why only an admin may get a certificate of a name; empty if others may.
func (cs *certnames) offLimits(name node.Certname) string {
	switch {
	case cs.protection(name) != "":
		return cs.protection(name)
	case slices.Contains(cs.principals.Load().Certnames, string(name)):
		return "a principal of espm is known by that name"
	case slices.Contains(cs.served(), string(name)):
		return "espm is reached by that name"
	case name == "puppet":
		return "agents look for their server under that name"
	}
	return ""
}

// mayName checks whether the caller may register a name or get a certificate of it.
func (cs *certnames) mayName(ctx context.Context, name node.Certname) error {
	a := accessOf(ctx)
	if err := a.write(); err != nil || !a.confined() {
		return err
	}
	if why := cs.offLimits(name); why != "" {
		return node.NotPermitted("certname", "%q: %s", name, why)
	}
	if !a.named(string(name)) {
		return node.NotPermitted("certname", "%q is none of the names granted to %s", name, a.Name)
	}
	return nil
}

// mayOrder checks the certificate that the caller asks for, including the contents of its CSR. If the caller
// asks for no TTL and the default exceeds its limit, mayOrder sets the TTL to the limit.
func (cs *certnames) mayOrder(ctx context.Context, o *order) error {
	if err := cs.mayName(ctx, o.request.Certname); err != nil {
		return err
	}
	a := accessOf(ctx)
	if !a.confined() {
		return nil
	}
	for _, name := range o.request.DNSAltNames {
		if err := cs.mayAltName(ctx, a, name); err != nil {
			return err
		}
	}
	for _, e := range o.request.Extensions {
		if err := cs.mayExtend(a, e); err != nil {
			return err
		}
	}
	limit := a.Grant.MaxTTL
	switch {
	case limit == 0:
	case o.request.TTL > limit:
		return node.NotPermitted("ttl", "at most %v is granted to %s, is %v", node.Duration(limit), a.Name, node.Duration(o.request.TTL))
	case o.request.TTL == 0 && cs.ttl > limit:
		o.request.TTL = limit
	}
	return nil
}

// mayAltName checks a DNS alt name. It must not be the name of the Puppet Server, of espm, or of a node that
// the caller does not own.
func (cs *certnames) mayAltName(ctx context.Context, a access, name string) error {
	if why := cs.offLimits(node.Certname(name)); why != "" {
		return node.NotPermitted("dns_alt_names", "%q: %s", name, why)
	}
	if !a.named(name) {
		return node.NotPermitted("dns_alt_names", "%q is none of the names granted to %s", name, a.Name)
	}
	n, live, err := cs.live(ctx, node.Certname(name))
	if err == nil && live && !a.sees(n.Owner) {
		return node.NotPermitted("dns_alt_names", "%q is the name of a node", name)
	}
	return err
}
