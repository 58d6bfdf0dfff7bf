package store

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/espm-project/espm/internal/node"
)

// GroupSet is the groups that a node is in, sorted. Many nodes are in the same
// ones, so a write of a group looks at each set once, not at each node. Each
// set that a live node is in is known. A known set may have no nodes any
// more, until RemoveSets takes it out.
//
// A set is known by a mark, not by a count of its nodes: a count would make all
// who register nodes in the set change one record, each after the other.
type GroupSet struct {
	Name string // the groups with commas between

	// Revision is when a node last joined the set, or a node of it last changed what it sets itself.
	Revision int64
}

// Groups returns the groups of a set.
func (s GroupSet) Groups() []string { return strings.Split(s.Name, setComma) }

func setName(groups []string) string { return strings.Join(groups, setComma) }

// Set returns a set of groups; false where it is not known.
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

// SetMembers yields the certnames that are in just these groups.
func (v groupView) SetMembers(ctx context.Context, s GroupSet) iter.Seq2[node.Certname, error] {
	return scanLast[node.Certname](ctx, v.records, setMemberPrefix(s.Name))
}

// FirstOf returns one node of a set; false where there is none.
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

// GuardSet makes the change fail if a node joins the set, or a node of it sets something else, after the set was read.
func (c *Change) GuardSet(s GroupSet) { c.guard(setPrefix+s.Name, s.Revision) }

// KnownSet says that the set was known after the mark of GuardGroups was read. PutNode
// takes any other set for a new one: a write of a group that did not see it fails then.
func (c *Change) KnownSet(s GroupSet) { c.known = append(c.known, s.Name) }

// joinSet marks the set that a node joins, or in which it sets something else.
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

// RemoveSets forgets sets that have no nodes. They were read before their nodes
// were looked for: where a node joined one since then, the error wraps node.ErrStale. It
// is several commits. Who joins at the same time, and found the set known, has to look again: the mark of GroupsMark says so.
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
