package store

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/espm-project/espm/internal/node"
)

// GroupSet is the sorted groups that a node is in. Many nodes have the same set, so a write of a group checks each set
// once, not each node. A set is known if it has a mark. Each set with a live node is known. A known set may have no
// nodes, until RemoveSets removes its mark.
//
// The mark is not a count of the nodes: with a count, all registrations in the set would have to change one record,
// one after the other.
type GroupSet struct {
	Name string // the groups with commas between

	// Revision is the revision at which a node last joined the set, or a node of the set last changed its own values.
	Revision int64
}

// Groups returns the groups of a set.
func (s GroupSet) Groups() []string { return strings.Split(s.Name, setComma) }

func setName(groups []string) string { return strings.Join(groups, setComma) }

// Set returns a set of groups; false if it is not known.
func (v groupView) Set(ctx context.Context, groups []string) (GroupSet, bool, error) {
	name := setName(groups)
	rev, err := v.revision(ctx, setPrefix+name)
	return GroupSet{name, rev}, rev != 0, err
}

// Sets yields all sets that are known.
func (v groupView) Sets(ctx context.Context) iter.Seq2[GroupSet, error] {
	return func(yield func(GroupSet, error) bool) {
		for rec, err := range v.scan(ctx, setPrefix, "") {
			if err != nil {
				yield(GroupSet{}, err)
				return
			}
			if !yield(GroupSet{rec.Key[len(setPrefix):], rec.Revision}, nil) {
				return
			}
		}
	}
}

// SetMembers yields the certnames that are in exactly these groups.
func (v groupView) SetMembers(ctx context.Context, s GroupSet) iter.Seq2[node.Certname, error] {
	return scanLast[node.Certname](ctx, v.records, setMemberPrefix(s.Name))
}

// FirstOf returns one node of a set; false if it has none.
func (v groupView) FirstOf(ctx context.Context, s GroupSet) (node.Certname, bool, error) {
	recs, _, err := v.reader.List(ctx, setMemberPrefix(s.Name), "", 1)
	if err != nil || len(recs) == 0 {
		return "", false, err
	}
	return node.Certname(lastPart(recs[0].Key)), true, nil
}

// SetsMark is the revision at which a set last became known.
type SetsMark int64

// SetsMark reads the mark, to be guarded by a Change.
func (v groupView) SetsMark(ctx context.Context) (SetsMark, error) {
	rev, err := v.revision(ctx, setsMark)
	return SetsMark(rev), err
}

// GuardSets makes the change fail if a set becomes known after the mark was read.
func (c *Change) GuardSets(m SetsMark) { c.guard(setsMark, int64(m)) }

// GuardSet makes the change fail if, after the set was read, a node joins it or a node of it changes its own values.
func (c *Change) GuardSet(s GroupSet) { c.guard(setPrefix+s.Name, s.Revision) }

// KnownSet tells the change that the set was known after the mark of GuardGroups was read. PutNode handles every other
// set as a new one, and changes the mark of sets: a concurrent write of a group then fails.
func (c *Change) KnownSet(s GroupSet) { c.known = append(c.known, s.Name) }

// joinSet changes the mark of the set that a node joins, or in which it changes its own values.
func (c *Change) joinSet(groups []string) {
	if len(groups) == 0 {
		return
	}
	name := setName(groups)
	c.put(setPrefix+name, nil)
	if !slices.Contains(c.known, name) {
		c.put(setsMark, nil)
	}
}

// RemoveSets removes sets without nodes, in several commits. The caller must read the sets before it checks that they
// have no nodes: if a node joined one meanwhile, the error wraps node.ErrStale. RemoveSets changes the mark of
// GroupsMark, so a concurrent registration that found the set known fails and starts over.
func (s *Store) RemoveSets(ctx context.Context, sets []GroupSet) error {
	const most = 500
	for some := range slices.Chunk(sets, s.Fit(most, 1)) {
		b := Batch{Puts: []Put{{groupsMark, nil}}}
		for _, set := range some {
			b.Guards = append(b.Guards, Guard{setPrefix + set.Name, set.Revision})
			b.Deletes = append(b.Deletes, setPrefix+set.Name)
		}
		if _, err := s.commit(ctx, b); err != nil {
			return err
		}
	}
	return nil
}
