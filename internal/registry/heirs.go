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

// review checks how one write of a group affects its heirs: the groups and nodes that inherit it. It checks each
// set of groups that nodes are in once. It reads nodes only if the write makes their set conflict. It holds no
// lock; guards keep the result right:
//
//   - A write of a node guards the mark of groups. So a node that was checked against the old groups can't be
//     committed after the write of the group.
//   - A node in a new set changes the mark of sets, which the write of the group guards.
//   - The write guards each set that it makes conflict: a node may join it without a value of its own that
//     decides the conflict. It need not guard a set without conflicts, as any node may join that.
type review struct {
	store    *store.Store
	was, now node.Group
	mark     store.GroupsMark
	heirs    map[string]bool // the group, and all that inherit it
	write    *classify.Write
	harmless map[string]bool // names of sets without conflicts; earlier tries of the same write count
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

// of reports whether this review still holds for a write that is retried: the groups have not changed meanwhile.
func (v *review) of(mark store.GroupsMark, now node.Group) bool {
	return v != nil && v.mark == mark && slices.Equal(v.now.Parents, now.Parents) && reflect.DeepEqual(v.now.Classification, now.Classification)
}

// read reads the groups that are not known, and all that they inherit. It leaves out a group that was deleted
// after its name was read: the commit fails by the mark of groups.
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

// check checks all sets, and adds the guards to the change. Errors: a *node.ConflictError that names all nodes of
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

// checkSet reports whether a set is without conflicts. It adds to clash the nodes that have the first conflict.
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

// refuse returns why no node may be in a set, if the set has a node.
func (v *review) refuse(ctx context.Context, set store.GroupSet, why error) error {
	name, found, err := v.store.FirstOf(ctx, set)
	if err != nil || !found {
		return err
	}
	return fmt.Errorf("node %q: %w", name, why)
}

// checkNode checks whether a node's own values decide the conflicts of its set.
func (v *review) checkNode(ctx context.Context, set store.GroupSet, name node.Certname, conflicts []classify.Conflict, clash **node.ConflictError) error {
	n, err := v.store.Node(ctx, name)
	if errors.Is(err, node.ErrNodeNotFound) {
		return nil // terminated after the index was read
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
