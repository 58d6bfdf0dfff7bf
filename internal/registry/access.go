package registry

import (
	"context"
	"slices"
	"strings"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Who may see and do what: all decisions on ownership and confinement are here.
//
// A registration belongs to the principal that made it. Admins and readers see
// all; anybody else sees what is his own, and of the rest learns no more than of
// what does not exist, in the same words. Certificates and revocations
// carry the owner of their registration, so that lists and watches of one owner are read
// from an index. What espm does by itself (node.AsSelf) is never confined.
// Where no caller is known, or it has none of the roles, every use case refuses.
//
// docs/ownership.md says what a provisioner can learn nevertheless.

// access is what one caller may see and do.
type access struct{ node.Caller }

func accessOf(ctx context.Context) access { return access{node.CallerOf(ctx)} }

// confined tells a caller that sees its own alone. A role that is new here is confined.
func (a access) confined() bool { return a.Role != node.Admin && a.Role != node.Reader }

// known refuses a caller without a role, and work without a caller.
func (a access) known() error {
	if slices.Contains(node.Roles, a.Role) {
		return nil
	}
	return node.NotPermitted("", "the caller has no role")
}

// sees tells whether a record is there for the caller. One without an owner is there for
// those who see all.
func (a access) sees(owner string) bool {
	return !a.confined() || owner != "" && owner == a.Name
}

// scope returns the owner whose records alone the caller sees, "" where it sees all.
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

// all refuses those who do not see all.
func (a access) all() error {
	if err := a.known(); err != nil || !a.confined() {
		return err
	}
	return node.NotPermitted("", "only admins and readers see the state of the CA")
}

// write refuses those who may only read.
func (a access) write() error {
	if a.Role == node.Reader {
		return node.NotPermitted("", "a reader changes nothing")
	}
	return a.known()
}

// admin refuses all but admins.
func (a access) admin(field, what string) error {
	if a.Role == node.Admin {
		return nil
	}
	return node.NotPermitted(field, "only an admin may %s", what)
}

func (a access) named(name string) bool {
	return a.Grant.Names == nil || slices.ContainsFunc(a.Grant.Names, func(pattern string) bool { return matches(pattern, name) })
}

// extended tells whether a certificate may have an extension. One that Puppet's
// own authorization goes by must be listed.
func (a access) extended(e ca.Extension) bool {
	if a.Grant.Extensions == nil {
		return !e.GrantsAuthorization()
	}
	return slices.Contains(a.Grant.Extensions, ca.ExtensionName(e.ID)) || slices.Contains(a.Grant.Extensions, e.ID.String())
}

// mayJoin checks the groups that a write puts a node into, or takes it out of: those that an
// admin put it into stay.
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

// mayLive checks the environment that a write brings a node into, also one that comes
// from its groups: else a group would be a way around.
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

// reads tells whether a caller may look at a group. What a granted group
// inherits shows in the classification of nodes alone.
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

// matches tells whether a name fits a pattern as a whole: "*" stands for any
// characters but a dot, none included, "**" for any. Certnames are lower case, so patterns are read as such.
func matches(pattern, name string) bool {
	pattern = strings.ToLower(pattern)
	at := make([]bool, len(name)+1) // at[i]: the pattern so far fits name[:i]
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
