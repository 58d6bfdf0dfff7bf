package registry

import (
	"context"
	"slices"
	"strings"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// All decisions on who may see and do what are in this file.
//
// A registration is owned by the principal that made it. Admins and readers see all records. Every other caller
// sees only its own; for all others it gets the same error as for a record that does not exist. Certificates
// and revocations have the owner of their registration, so an index lists the records of one owner. Work that
// espm does for itself (node.AsSelf) is not confined. Every use case refuses a context without a caller, and a
// caller without a role.
//
// docs/ownership.md says what a provisioner can still learn about others.

// access decides what one caller may see and do.
type access struct{ node.Caller }

func accessOf(ctx context.Context) access { return access{node.CallerOf(ctx)} }

// confined reports whether the caller sees only its own records. An unknown role is confined.
func (a access) confined() bool { return a.Role != node.Admin && a.Role != node.Reader }

// known refuses a caller without a role, and work without a caller.
func (a access) known() error {
	if slices.Contains(node.Roles, a.Role) {
		return nil
	}
	return node.NotPermitted("", "the caller has no role")
}

// sees reports whether the caller may see a record of an owner. Only callers that are not confined see a record
// without an owner.
func (a access) sees(owner string) bool {
	return !a.confined() || owner != "" && owner == a.Name
}

// scope returns the only owner whose records the caller sees; empty if it sees all.
func (a access) scope() (string, error) {
	if err := a.known(); err != nil {
		return "", err
	}
	switch {
	case !a.confined():
		return "", nil
	case a.Name == "":
		return "", node.NotPermitted("", "the caller has no name")
	default:
		return a.Name, nil
	}
}

// all refuses a caller that does not see all records.
func (a access) all() error {
	if err := a.known(); err != nil || !a.confined() {
		return err
	}
	return node.NotPermitted("", "only admins and readers see the state of the CA")
}

// write refuses a caller that may only read.
func (a access) write() error {
	if a.Role == node.Reader {
		return node.NotPermitted("", "a reader changes nothing")
	}
	return a.known()
}

// MayReveal refuses a caller that may not see sensitive values. Every transport asks it before it shows them: records
// have them in clear, as the ENC needs them.
func MayReveal(ctx context.Context) error {
	if accessOf(ctx).Role == node.Admin {
		return nil
	}
	return node.NotPermitted("", "sensitive values are for admins")
}

// admin refuses every caller but an admin.
func (a access) admin(field, what string) error {
	if a.Role == node.Admin {
		return nil
	}
	return node.NotPermitted(field, "only an admin may %s", what)
}

func (a access) named(name string) bool {
	return a.Grant.Names == nil || slices.ContainsFunc(a.Grant.Names, func(pattern string) bool { return matches(pattern, name) })
}

// extended reports whether a certificate may have an extension. Puppet grants rights by some extensions: these
// must be in the grant.
func (a access) extended(e ca.Extension) bool {
	if a.Grant.Extensions == nil {
		return !e.GrantsAuthorization()
	}
	return slices.ContainsFunc(a.Grant.Extensions, func(entry string) bool { return parseGranted(entry).covers(e) })
}

// mayJoin checks the groups that a write adds to a node or removes from it. The caller can't remove a group that
// is not in its grant, as an admin added it.
func (a access) mayJoin(old *node.Node, n node.Node) error {
	if !a.confined() || a.Grant.Groups == nil {
		return nil
	}
	var before []string
	if old != nil {
		before = old.Groups
	}
	for _, change := range [][2][]string{{n.Groups, before}, {before, n.Groups}} {
		for _, g := range change[0] {
			if !slices.Contains(change[1], g) && !slices.Contains(a.Grant.Groups, g) {
				return node.NotPermitted("groups", "%q is none of the groups granted to %s", g, a.Name)
			}
		}
	}
	return nil
}

// mayLive checks the environment that a node has after a write. It checks an inherited environment, too: a
// caller could otherwise reach any environment through a group.
func (a access) mayLive(environment string, old *node.Node, n node.Node) error {
	if !a.confined() || a.Grant.Environments == nil {
		return nil
	}
	if old != nil && old.Classification.Environment == n.Classification.Environment && slices.Equal(old.Groups, n.Groups) {
		return nil
	}
	if !slices.Contains(a.Grant.Environments, environment) {
		return node.NotPermitted("environment", "%q is none of the environments granted to %s", environment, a.Name)
	}
	return nil
}

// reads reports whether the caller may read a group. The parents of a granted group are not granted; their
// values show only in the classification of nodes.
func (a access) reads(group string) bool {
	return !a.confined() || a.Grant.Groups == nil || slices.Contains(a.Grant.Groups, group)
}

// mayChangeOwner checks a new owner.
func (a access) mayChangeOwner(from, to string) error {
	if from == to {
		return nil
	}
	if err := a.admin("owner", "give a node to another owner"); err != nil {
		return err
	}
	kind, name, ok := strings.Cut(to, ":")
	if to != "" && (!ok || kind == "" || name == "" || len(to) > maxOwner || printable(to) != to) {
		return node.Invalid("owner", "must be a principal's name such as token:ci, of at most %d printable bytes; empty: no owner", maxOwner)
	}
	return nil
}

const maxOwner = 256

// matches reports whether a pattern matches a whole name. "*" matches any characters but a dot, or none; "**"
// matches any characters. Certnames are lower case, so patterns are converted to lower case.
func matches(pattern, name string) bool {
	pattern = strings.ToLower(pattern)
	at := make([]bool, len(name)+1) // at[i]: the pattern so far matches name[:i]
	at[0] = true
	for pattern != "" {
		next := make([]bool, len(name)+1)
		switch {
		case pattern[0] == '*':
			double := strings.HasPrefix(pattern, "**")
			reached := false
			for i := range next {
				if i > 0 && name[i-1] == '.' && !double {
					reached = false
				}
				reached = reached || at[i]
				next[i] = reached
			}
			if double {
				pattern = pattern[1:]
			}
		default:
			for i := range len(name) {
				next[i+1] = at[i] && name[i] == pattern[0]
			}
		}
		at, pattern = next, pattern[1:]
	}
	return at[len(name)]
}
