package classify

import (
	"maps"
	"math/bits"
	"reflect"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// Write checks sets of groups against one write of a group. A set is the groups that a node is in; many nodes have
// the same set. Write checks only the settings that the write can affect, so that 50,000 sets take a fraction of a
// second.
//
// A setting is affected if the write changes the group's value for it. If the write changes the group's parents, all
// settings of the group and of its old and new ancestors are affected.
type Write struct {
	now, before *forest // only the affected settings

	written  node.Group      // as it will be
	was      node.Group      // as it is
	affected map[Setting]int // the number of each setting's bit
	keys     []Setting       // by bit

	index   map[string]int
	members []member

	// Memory of Check, reused by the next call.
	round       int
	visited     []int // by member: the last round that reached it
	closure     []int
	once, twice []uint64
}

// member is one group, as the write leaves it.
type member struct {
	name  string
	size  int
	sets  []uint64 // bits of the affected settings that it sets; nil: none
	above []int    // itself and its ancestors; nil until above has found them
}

// NewWrite returns the write that replaces the group was by now. groups has was, and all that the group inherits
// before and after the write, by name. Call Add for all other groups.
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

// Knows reports whether Add was called for the group.
func (w *Write) Knows(name string) bool { _, known := w.index[name]; return known }

// Add adds a group that a set reaches. For the written group, the old or the new form may be given.
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
	w.visited = append(w.visited, 0)
}

// only returns a group's values of the affected settings.
func (w *Write) only(g node.Group) settings {
	all := flatten(g.Classification, own)
	maps.DeleteFunc(all, func(key Setting, _ value) bool { _, ok := w.affected[key]; return !ok })
	return all
}

// Check returns the conflicts that the write adds to a set of groups. The nodes of the set may decide them. The
// error is that of CheckReach or CheckSize: the set exceeds what a node may inherit. All groups that the set
// reaches must be added before; a group that was not added sets nothing.
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

// walk finds the groups that a set reaches, and the settings that two of them set. It returns the groups' size.
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
			if w.visited[i] == w.round {
				continue
			}
			w.visited[i] = w.round
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

// setters returns the groups of the closure that set a setting, sorted.
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
