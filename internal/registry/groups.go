package registry

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/classify"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// groups writes groups, and checks nodes against them.
type groups struct {
	core

	// writing serializes writers of groups: of two concurrent ones, one would have to start over. Writers of nodes
	// never wait for it: the guards of each commit keep the result right.
	writing sync.Mutex
	cache   groupCache
}

// admit checks a node against its groups, and guards the change against concurrent writes of groups. It tells the
// change if the node's set of groups is known. It returns the merged classification.
func (g *groups) admit(ctx context.Context, c *store.Change, n node.Node) (node.Classification, error) {
	if len(n.Groups) == 0 {
		return n.Classification, nil
	}
	mark, err := g.store.GroupsMark(ctx)
	if err != nil {
		return node.Classification{}, err
	}
	c.GuardGroups(mark)
	set, known, err := g.store.Set(ctx, n.Groups)
	if err != nil {
		return node.Classification{}, err
	}
	if known {
		c.KnownSet(set)
	}
	return checkNode(ctx, g.cache.at(g.store, mark), n)
}

// commitNode implements the type commitNode.
func (g *groups) commitNode(ctx context.Context, c *store.Change, old *node.Node, n *node.Node, validateOnly bool) error {
	a := accessOf(ctx)
	if err := a.mayJoin(old, *n); err != nil {
		return err
	}
	merged, err := g.admit(ctx, c, *n)
	if err != nil {
		return err
	}
	if err := a.mayLive(merged.Environment, old, *n); err != nil {
		return err
	}
	c.PutNode(old, *n)
	if err := c.Err(); err != nil || validateOnly {
		return err
	}
	rev, err := g.store.Commit(ctx, c)
	if err != nil {
		return fmt.Errorf("node %q: %w", n.Certname, err)
	}
	n.Revision = rev
	return nil
}

// checkNode checks that a node's groups exist and do not conflict, and that Puppet accepts the merged
// classification, which it returns.
func checkNode(ctx context.Context, groups enc.Groups, n node.Node) (node.Classification, error) {
	if len(n.Groups) == 0 {
		return n.Classification, nil
	}
	reached, err := reach(ctx, groups, n.Groups)
	if err != nil {
		return node.Classification{}, err
	}
	answer := classify.Node(n, reached)
	return answer.Classification(), answer.Err(n.Certname)
}

// reach reads groups with all that they inherit, and checks that their size is within the bounds for a node.
func reach(ctx context.Context, groups enc.Groups, names []string) (map[string]node.Group, error) {
	reached, err := enc.Reach(ctx, groups, names)
	if errors.Is(err, node.ErrGroupNotFound) {
		return nil, fmt.Errorf("groups: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return reached, classify.CheckSize(classify.Size(reached))
}

// CreateGroup creates a group. Only admins may write groups, as a group's values reach the nodes of all owners.
// Errors: node.ErrNotPermitted, ErrInvalid, ErrGroupExists, and ErrGroupNotFound for a parent.
func (g *groups) CreateGroup(ctx context.Context, group node.Group, validateOnly bool) (node.Group, error) {
	if err := node.Join(accessOf(ctx).admin("", "write groups"), group.Validate()); err != nil {
		return group, err
	}
	slices.Sort(group.Parents)
	group.CreatedAt = g.now().UTC()
	group.UpdatedAt = group.CreatedAt
	g.writing.Lock()
	defer g.writing.Unlock()
	err := retry(func() error {
		mark, err := g.store.GroupsMark(ctx)
		if err != nil {
			return err
		}
		_, err = g.store.Group(ctx, group.Name)
		if err == nil {
			return fmt.Errorf("%w: %q", node.ErrGroupExists, group.Name)
		}
		if !errors.Is(err, node.ErrGroupNotFound) {
			return err
		}
		if err := checkParents(ctx, g.store, group); err != nil {
			return err
		}
		return g.commit(ctx, store.NewChange(), mark, nil, &group, validateOnly)
	})
	return group, err
}

// UpdateGroup applies edit to a group. If revision is not 0, it must be the group's. UpdateGroup checks the nodes
// that inherit the group; see review. Errors: edit's, node.ErrInvalid (a cycle, too), ErrGroupNotFound, ErrStale,
// and ErrConflict, which names the nodes.
func (g *groups) UpdateGroup(ctx context.Context, name string, revision int64, edit func(*node.Group) error, validateOnly bool) (node.Group, error) {
	var group node.Group
	if err := accessOf(ctx).admin("", "write groups"); err != nil {
		return group, err
	}
	g.writing.Lock()
	defer g.writing.Unlock()
	var checked *review
	err := retry(func() error {
		mark, err := g.store.GroupsMark(ctx)
		if err != nil {
			return err
		}
		old, err := g.store.Group(ctx, name)
		if err != nil {
			return err
		}
		if revision != 0 && revision != old.Revision {
			return &staleError{revision, old.Revision}
		}
		group = old
		if err := edit(&group); err != nil {
			return err
		}
		slices.Sort(group.Parents)
		group.UpdatedAt = g.now().UTC()
		if err := group.Validate(); err != nil {
			return err
		}
		if err := checkParents(ctx, g.store, group); err != nil {
			return err
		}
		c := store.NewChange()
		if changesHeirs(old, group) {
			if !checked.of(mark, group) {
				if checked, err = newReview(ctx, g.store, mark, old, group); err != nil {
					return err
				}
			}
			if err := checked.check(ctx, c); err != nil {
				return err
			}
		}
		return g.commit(ctx, c, mark, &old, &group, validateOnly)
	})
	return group, asStale(err)
}

// DeleteGroup deletes a group that nothing inherits. If revision is not 0, it must be the group's.
// Errors: node.ErrGroupNotFound, ErrStale, ErrGroupInUse.
func (g *groups) DeleteGroup(ctx context.Context, name string, revision int64, validateOnly bool) error {
	if err := accessOf(ctx).admin("", "write groups"); err != nil {
		return err
	}
	g.writing.Lock()
	defer g.writing.Unlock()
	return asStale(retry(func() error {
		old, err := g.store.Group(ctx, name)
		if err != nil {
			return err
		}
		if revision != 0 && revision != old.Revision {
			return &staleError{revision, old.Revision}
		}
		with := func(set store.GroupSet) bool { return slices.Contains(set.Groups(), name) }
		sets, err := g.sets(ctx, with)
		if err != nil {
			return err
		}
		if err := g.checkUnused(ctx, name); err != nil || validateOnly {
			return err
		}
		// RemoveSets fails if a node joined a set after the sets were read. Once it succeeds, a node can join the
		// group only by a new set, which remove checks.
		if err := g.store.RemoveSets(ctx, sets); err != nil {
			return err
		}
		return g.remove(ctx, old, with)
	}))
}

// remove removes a group that is in no known set.
func (g *groups) remove(ctx context.Context, old node.Group, with func(store.GroupSet) bool) error {
	mark, err := g.store.GroupsMark(ctx)
	if err != nil {
		return err
	}
	sets, err := g.store.SetsMark(ctx)
	if err != nil {
		return err
	}
	if joined, err := g.sets(ctx, with); err != nil || len(joined) > 0 {
		return errors.Join(err, fmt.Errorf("%w: a node joined group %q", node.ErrStale, old.Name))
	}
	for child, err := range g.store.Children(ctx, old.Name) {
		return errors.Join(err, fmt.Errorf("%w: group %q inherits %q now", node.ErrStale, child, old.Name))
	}
	c := store.NewChange()
	c.Audit(g.groupLine(ctx, node.ActionGroupDelete, old.Name))
	c.GuardSets(sets)
	c.RemoveGroup(mark, old)
	_, err = g.store.Commit(ctx, c)
	return err
}

// sets returns the known sets for which wanted returns true.
func (g *groups) sets(ctx context.Context, wanted func(store.GroupSet) bool) ([]store.GroupSet, error) {
	var all []store.GroupSet
	for set, err := range g.store.Sets(ctx) {
		if err != nil {
			return nil, err
		}
		if wanted(set) {
			all = append(all, set)
		}
	}
	return all, nil
}

// sweep removes the sets without nodes.
func (g *groups) sweep(ctx context.Context) error {
	var empty []store.GroupSet
	for set, err := range g.store.Sets(ctx) {
		if err != nil {
			return err
		}
		_, used, err := g.store.FirstOf(ctx, set)
		if err != nil {
			return err
		}
		if !used {
			empty = append(empty, set)
		}
	}
	err := g.store.RemoveSets(ctx, empty)
	if errors.Is(err, node.ErrStale) {
		return nil // a node joined a set: the next sweep checks again
	}
	return err
}

func (g *groups) groupLine(ctx context.Context, action node.Action, name string) node.AuditLine {
	l := audit.Line(ctx, g.now(), action)
	l.Object = "group/" + name
	return l
}

func (g *groups) checkUnused(ctx context.Context, name string) error {
	const named = 20
	var users []string
	for child, err := range g.store.Children(ctx, name) {
		if err != nil {
			return err
		}
		users = append(users, "group "+child)
		if len(users) == named {
			break
		}
	}
	for member, err := range g.store.Members(ctx, name) {
		if err != nil {
			return err
		}
		if len(users) == named {
			users = append(users, "and more")
			break
		}
		users = append(users, "node "+string(member))
	}
	if users == nil {
		return nil
	}
	return fmt.Errorf("%w: %q is inherited by %s", node.ErrGroupInUse, name, strings.Join(users, ", "))
}

// commit commits a group that was checked, and sets now's revision.
func (g *groups) commit(ctx context.Context, c *store.Change, mark store.GroupsMark, old, now *node.Group, validateOnly bool) error {
	c.PutGroup(mark, old, *now)
	if err := c.Err(); err != nil || validateOnly {
		return err
	}
	action := node.ActionGroupUpdate
	if old == nil {
		action = node.ActionGroupCreate
	}
	c.Audit(g.groupLine(ctx, action, now.Name))
	rev, err := g.store.Commit(ctx, c)
	if err != nil {
		return fmt.Errorf("group %q: %w", now.Name, err)
	}
	now.Revision = rev
	return nil
}

// changesHeirs reports whether a write can change what nodes inherit.
func changesHeirs(old, g node.Group) bool {
	return !slices.Equal(old.Parents, g.Parents) || !reflect.DeepEqual(old.Classification, g.Classification)
}

// checkParents checks that all ancestors exist and that there is no cycle. It does not check for conflicts
// between the ancestors, as a node's own values may decide them.
func checkParents(ctx context.Context, groups enc.Groups, g node.Group) error {
	path := []string{g.Name}
	visited := map[string]bool{}
	var walk func(parents []string) error
	walk = func(parents []string) error {
		for _, p := range parents {
			if p == g.Name {
				return node.Invalid("parents", "would make a cycle: %s", strings.Join(append(path, p), " -> "))
			}
			if visited[p] {
				continue
			}
			visited[p] = true
			parent, err := groups.Group(ctx, p)
			if err != nil {
				return fmt.Errorf("parents of group %q: %w", g.Name, err)
			}
			path = append(path, p)
			if err := walk(parent.Parents); err != nil {
				return err
			}
			path = path[:len(path)-1]
		}
		return nil
	}
	return walk(g.Parents)
}
