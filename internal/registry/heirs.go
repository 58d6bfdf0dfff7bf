package registry

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"

	"github.com/espm-project/espm/internal/classify"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// review checks what one write of a group does to its heirs. It looks at each
// set of groups that nodes are in once, and at nodes only where the write makes a set disagree. It holds no lock:
//
//   - who writes a node guards the mark of groups, so a node that was checked
//     against the groups as they were can't be committed after the write;
//   - who brings a set that was not known changes the mark of sets, which the write guards;
//   - a set that comes to disagree is guarded itself, as a node may join it without
//     deciding. A set that does not is not: whatever joins it does no harm.
type review struct {
	store    *store.Store
	was, now node.Group
	mark     store.GroupsMark
	heirs    map[string]bool // the group, and all that inherit it
	write    *classify.Write
	harmless map[string]bool // sets by name, of earlier tries too
}

func newReview(ctx context.Context, s *store.Store, mark store.GroupsMark, was, now node.Group) (*review, error) {
	v := &review{store: s, was: was, now: now, mark: mark, heirs: map[string]bool{}, harmless: map[string]bool{}}
	for queue := []string{now.Name}; len(queue) > 0; queue = queue[1:] {
		if v.heirs[queue[0]] {
			continue
		}
		v.heirs[queue[0]] = true
		for child, err := range s.Children(ctx, queue[0]) {
			if err != nil {
				return nil, err
			}
			queue = append(queue, child)
		}
	}
	inherited := map[string]node.Group{}
	for _, parents := range [][]string{was.Parents, now.Parents} {
		known := func(name string) bool { _, ok := inherited[name]; return ok }
		if err := v.read(ctx, parents, known, func(g node.Group) { inherited[g.Name] = g }); err != nil {
			return nil, err
		}
	}
	v.write = classify.NewWrite(was, now, inherited)
	v.write.Add(now)
	for _, g := range inherited {
		v.write.Add(g)
	}
	return v, nil
}

// of tells whether this is the review of a write, which is tried again: the groups have not changed since.
func (v *review) of(mark store.GroupsMark, now node.Group) bool {
	return v != nil && v.mark == mark && slices.Equal(v.now.Parents, now.Parents) && reflect.DeepEqual(v.now.Classification, now.Classification)
}

// read reads groups, and all that they inherit, that are not known. One that is gone is left
// out: it went since the names were read, and the mark of groups tells.
func (v *review) read(ctx context.Context, names []string, known func(string) bool, add func(node.Group)) error {
	for queue := slices.Clone(names); len(queue) > 0; queue = queue[1:] {
		if known(queue[0]) {
			continue
		}
		g, err := v.store.Group(ctx, queue[0])
		if errors.Is(err, node.ErrGroupNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		add(g)
		queue = append(queue, g.Parents...)
	}
	return nil
}

// check checks all sets, and guards the change. Its errors are a *node.ConflictError that names all nodes of
// the first conflict, and *node.InvalidError.
func (v *review) check(ctx context.Context, c *store.Change) error {
	mark, err := v.store.SetsMark(ctx)
	if err != nil {
		return err
	}
	c.GuardSets(mark)
	var clash *node.ConflictError
	guarded := 0
	for set, err := range v.store.Sets(ctx) {
		if err != nil {
			return err
		}
		if v.harmless[set.Name] {
			continue
		}
		harmless, err := v.checkSet(ctx, set, &clash)
		if err != nil {
			return err
		}
		if harmless {
			v.harmless[set.Name] = true
			continue
		}
		c.GuardSet(set)
		guarded++
	}
	if clash != nil {
		slices.Sort(clash.Nodes)
		return clash
	}
	if most := v.store.Fit(math.MaxInt, 1); guarded > most {
		return node.Invalid("classification", "makes %d sets of groups disagree, where each node decides by its own values; one write may do so to %d: "+
			"set what they disagree on in a group that inherits both sides, or write it in steps", guarded, most)
	}
	return nil
}

// checkSet tells whether nodes may go on to join a set. It gathers the nodes that meet the first conflict.
func (v *review) checkSet(ctx context.Context, set store.GroupSet, clash **node.ConflictError) (harmless bool, err error) {
	groups := set.Groups()
	if !slices.ContainsFunc(groups, func(name string) bool { return v.heirs[name] }) {
		return true, nil
	}
	if err := v.read(ctx, groups, v.write.Knows, v.write.Add); err != nil {
		return false, err
	}
	conflicts, err := v.write.Check(groups)
	if err != nil {
		return false, v.refuse(ctx, set, err)
	}
	if len(conflicts) == 0 {
		return true, nil
	}
	for name, err := range v.store.SetMembers(ctx, set) {
		if err != nil {
			return false, err
		}
		if err := v.checkNode(ctx, set, name, conflicts, clash); err != nil {
			return false, err
		}
	}
	return false, nil
}

// refuse returns why no node may be in a set, if one is.
func (v *review) refuse(ctx context.Context, set store.GroupSet, why error) error {
	name, found, err := v.store.FirstOf(ctx, set)
	if err != nil || !found {
		return err
	}
	return fmt.Errorf("node %q: %w", name, why)
}

// checkNode checks whether a node of a set decides what the set disagrees on.
func (v *review) checkNode(ctx context.Context, set store.GroupSet, name node.Certname, conflicts []classify.Conflict, clash **node.ConflictError) error {
	n, err := v.store.Node(ctx, name)
	if errors.Is(err, node.ErrNodeNotFound) {
		return nil // terminated since the index was read
	}
	if err != nil {
		return err
	}
	for _, conflict := range classify.Undecided(conflicts, n.Classification) {
		found := conflict.Of(name)
		if *clash == nil {
			*clash = found
		} else if (*clash).Setting == found.Setting && (*clash).Groups == found.Groups {
			(*clash).Nodes = append((*clash).Nodes, name)
		}
	}
	return nil
}
