// Package classify merges a node's own values with those of its groups and their ancestors. It returns the merged
// classification, the origin of each value, and all conflicts. Its functions are pure: the caller reads the groups.
// It is linked by espm-enc, which Puppet Server starts for every catalog, so it
// imports little.
package classify

import (
	"cmp"
	"maps"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// MaxGroups is how many groups one node may inherit, directly or not.
const MaxGroups = 256

// CheckReach checks that a node inherits at most MaxGroups groups. The error is a *node.InvalidError on field "groups".
func CheckReach(groups int) error {
	if groups > MaxGroups {
		return node.Invalid("groups", "a node inherits at most %d groups, directly or not", MaxGroups)
	}
	return nil
}

// CheckSize checks the size of all groups that a node inherits: the sum of their Classification.Size. The bound
// leaves room for the largest values of a node itself, so that the merged answer is within Puppet's limit. The
// error is a *node.InvalidError on field "groups".
func CheckSize(size int) error {
	if size > node.MaxGroupsSize {
		return node.Invalid("groups", "the groups that a node inherits have together at most %d characters as YAML, these have up to %d",
			node.MaxGroupsSize, size)
	}
	return nil
}

// Size returns the sum that CheckSize checks.
func Size(groups map[string]node.Group) int {
	size := 0
	for _, g := range groups {
		size += g.Classification.Size()
	}
	return size
}

// Answer is a node's merged classification.
type Answer struct {
	settings settings
	sources  []string // groups, by value.source-1

	// Conflicts are all conflicts of the groups that the node's own values do not decide, sorted by setting.
	Conflicts []Conflict
}

// Conflict is one setting that two groups, neither an ancestor of the other,
// set to different values.
type Conflict struct {
	Setting Setting
	Groups  [2]string // sorted
}

// Origin says where a value comes from.
type Origin struct {
	Setting string // "environment", "classes[ntp]", "classes[ntp].servers" or "parameters[role]"
	Group   string // empty: the node itself
}

// Node merges a node's own values with those of its groups. The node's values override those of its groups, and a
// group's values override those of its ancestors. The answer has the classes of all. An environment or a
// parameter comes whole, with its sensitive mark, from the nearest that sets it. groups has all groups that the
// node inherits, by name; a missing group sets nothing.
func Node(n node.Node, groups map[string]node.Group) Answer {
	names := slices.Sorted(maps.Keys(groups))
	f := newForest(len(groups))
	for i, name := range names {
		f.add(groups[name], flatten(groups[name].Classification, source(i+1)))
	}
	a := Answer{settings: flatten(n.Classification, own), sources: names}
	for key, setters := range f.setters(names) {
		if _, decided := a.settings[key]; decided {
			continue
		}
		if decided, clash := f.decide(key, setters); clash != nil {
			a.Conflicts = append(a.Conflicts, *clash)
		} else {
			a.settings[key] = decided
		}
	}
	sortConflicts(a.Conflicts)
	return a
}

// Classification returns the answer as Puppet gets it, without the settings in Conflicts.
func (a Answer) Classification() node.Classification { return a.settings.classification() }

// Err returns the first conflict as a *node.ConflictError that names the node, nil if there is none.
func (a Answer) Err(name node.Certname) error {
	if len(a.Conflicts) == 0 {
		return nil
	}
	return a.Conflicts[0].Of(name)
}

// Of returns the conflict as an error that names the nodes.
func (c Conflict) Of(nodes ...node.Certname) *node.ConflictError {
	return &node.ConflictError{Setting: c.Setting.String(), Groups: c.Groups, Nodes: nodes}
}

// Origins returns where each value comes from, sorted by setting.
func (a Answer) Origins() []Origin {
	all := make([]Origin, 0, len(a.settings))
	for key, v := range a.settings {
		o := Origin{Setting: key.String()}
		if v.source != own {
			o.Group = a.sources[v.source-1]
		}
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b Origin) int { return cmp.Compare(a.Setting, b.Setting) })
	return all
}

// Undecided returns the conflicts that a node's own values do not decide.
func Undecided(conflicts []Conflict, c node.Classification) []Conflict {
	decided := flatten(c, own)
	return slices.DeleteFunc(slices.Clone(conflicts), func(c Conflict) bool { _, ok := decided[c.Setting]; return ok })
}

func sortConflicts(all []Conflict) {
	slices.SortFunc(all, func(a, b Conflict) int { return cmp.Compare(a.Setting.String(), b.Setting.String()) })
}
