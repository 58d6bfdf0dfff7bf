package classify

import (
	"maps"
	"math/bits"
	"reflect"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// Write checks sets of groups against one write of a group. A set is the groups
// that a node is in; many nodes are in the same one. Only what the write can
// change is looked at, so that 50,000 sets take a fraction of a second.
//
// A setting can change for an heir only if the written group sets it
// differently or, where its parents change, if the group or one of its
// ancestors, before or after, sets it.
type Write struct {
	now, before *forest // with the affected settings alone

	written  node.Group      // as it will be
	was      node.Group      // as it is
	affected map[Setting]int // a bit each
	keys     []Setting       // by bit

	index   map[string]int
	members []member

	// Of Check, kept to be used again.
	round       int
	seen        []int // by member: the last round that came by
	closure     []int
	once, twice []uint64
}

// member is one group, as the write leaves it.
type member struct {
	name  string
	size  int
	sets  []uint64 // of the affected settings; nil: none
	above []int    // itself and its ancestors, once they are known
}

// NewWrite returns the write of a group in place of was. groups has was, and all that
// the group inherits before and after, by name. Add tells of the other groups.
func NewWrite(was, now node.Group, groups map[string]node.Group) *Write {
	w := &Write{now: newForest(0), before: newForest(0), written: now, was: was, affected: map[Setting]int{}, index: map[string]int{}}
	for _, key := range affected(was, now, groups) {
		w.affected[key] = len(w.keys)
		w.keys = append(w.keys, key)
	}
	words := (len(w.keys) + 63) / 64
	w.once, w.twice = make([]uint64, words), make([]uint64, words)
	return w
}

func affected(was, now node.Group, groups map[string]node.Group) []Setting {
	before, after := flatten(was.Classification, own), flatten(now.Classification, own)
	keys := map[Setting]bool{}
	if slices.Equal(was.Parents, now.Parents) {
		for key, v := range before {
			if other, stays := after[key]; !stays || !reflect.DeepEqual(v.value, other.value) {
				keys[key] = true
			}
		}
		for key := range after {
			if _, known := before[key]; !known {
				keys[key] = true
			}
		}
		return slices.Collect(maps.Keys(keys))
	}
	for _, g := range groups {
		for key := range flatten(g.Classification, own) {
			keys[key] = true
		}
	}
	for _, all := range []settings{before, after} {
		for key := range all {
			keys[key] = true
		}
	}
	return slices.Collect(maps.Keys(keys))
}

// Knows tells whether Add was called for the group.
func (w *Write) Knows(name string) bool { _, known := w.index[name]; return known }

// Add tells of a group that a set to be checked can reach. Of the written group, either form may be given.
func (w *Write) Add(g node.Group) {
	if g.Name == w.written.Name {
		w.before.add(w.was, w.only(w.was))
		g = w.written
	} else {
		w.before.add(g, w.only(g))
	}
	s := w.only(g)
	w.now.add(g, s)
	m := member{name: g.Name, size: g.Classification.Size()}
	for key := range s {
		if m.sets == nil {
			m.sets = make([]uint64, len(w.once))
		}
		bit := w.affected[key]
		m.sets[bit/64] |= 1 << (bit % 64)
	}
	w.index[g.Name] = len(w.members)
	w.members = append(w.members, m)
	w.seen = append(w.seen, 0)
}

// only returns what a group sets of the affected settings.
func (w *Write) only(g node.Group) settings {
	all := flatten(g.Classification, own)
	maps.DeleteFunc(all, func(key Setting, _ value) bool { _, ok := w.affected[key]; return !ok })
	return all
}

// Check returns what the write makes a set of groups disagree on that it did not
// disagree on before; the nodes of the set may decide it. The error says that
// the set would be beyond what a node may inherit, whatever its nodes have of their own; it
// is that of CheckReach or CheckSize. All groups that the set reaches have been added. A group
// that was not is taken for one that sets nothing.
func (w *Write) Check(set []string) ([]Conflict, error) {
	size := w.walk(set)
	if err := node.Join(CheckReach(len(w.closure)), CheckSize(size)); err != nil {
		return nil, err
	}
	var found []Conflict
	for word, both := range w.twice {
		for ; both != 0; both &= both - 1 {
			bit := word*64 + bits.TrailingZeros64(both)
			if _, clash := w.now.decide(w.keys[bit], w.setters(bit)); clash != nil {
				found = append(found, *clash)
			}
		}
	}
	if found == nil {
		return nil, nil
	}
	known := w.before.conflicts(set)
	found = slices.DeleteFunc(found, func(c Conflict) bool { return known[c.Setting] })
	sortConflicts(found)
	return found, nil
}

// walk finds the groups that a set reaches, and what two of them set. It returns their size.
func (w *Write) walk(set []string) (size int) {
	w.round++
	w.closure = w.closure[:0]
	clear(w.once)
	clear(w.twice)
	for _, name := range set {
		start, known := w.index[name]
		if !known {
			continue
		}
		for _, i := range w.above(start) {
			if w.seen[i] == w.round {
				continue
			}
			w.seen[i] = w.round
			w.closure = append(w.closure, i)
			size += w.members[i].size
			for word, sets := range w.members[i].sets {
				w.twice[word] |= w.once[word] & sets
				w.once[word] |= sets
			}
		}
	}
	return size
}

// above returns a group and its ancestors.
func (w *Write) above(i int) []int {
	m := &w.members[i]
	if m.above == nil {
		m.above = []int{i}
		for name := range w.now.ancestorsOf(m.name) {
			if at, known := w.index[name]; known {
				m.above = append(m.above, at)
			}
		}
	}
	return m.above
}

// setters returns which groups of the closure set a thing, in order of name.
func (w *Write) setters(bit int) []string {
	var names []string
	for _, i := range w.closure {
		if sets := w.members[i].sets; sets != nil && sets[bit/64]&(1<<(bit%64)) != 0 {
			names = append(names, w.members[i].name)
		}
	}
	slices.Sort(names)
	return names
}
