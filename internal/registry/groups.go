package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/classify"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// checkNode makes sure that a node's groups exist and agree, and that the
// result is one that Puppet takes. It returns what they make together.
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

// reach reads groups with all that they inherit, and makes sure that a node may inherit so much.
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

// CreateGroup creates a group. Groups are written by admins alone: what one sets
// reaches the nodes of all. Errors: node.ErrNotPermitted, ErrInvalid, ErrGroupExists, and
// ErrGroupNotFound for a parent.
func (r *Registry) CreateGroup(ctx context.Context, g node.Group, validateOnly bool) (node.Group, error) {
	if err := node.Join(accessOf(ctx).admin("", "write groups"), g.Validate()); err != nil {
		return g, err
	}
	slices.Sort(g.Parents)
	g.CreatedAt = r.Now().UTC()
	g.UpdatedAt = g.CreatedAt
	err := retry(func() error {
		_, err := r.Store.Group(ctx, g.Name)
		if err == nil {
			return fmt.Errorf("%w: %q", node.ErrGroupExists, g.Name)
		}
		if !errors.Is(err, node.ErrGroupNotFound) {
			return err
		}
		return r.commitGroup(ctx, nil, &g, validateOnly)
	})
	return g, err
}

// UpdateGroup changes a group by applying edit to it; revision as in Update.
// Errors: edit's, node.ErrInvalid (a cycle too), ErrGroupNotFound, ErrStale, ErrConflict naming the nodes.
func (r *Registry) UpdateGroup(ctx context.Context, name string, revision int64, edit func(*node.Group) error, validateOnly bool) (node.Group, error) {
	var g node.Group
	if err := accessOf(ctx).admin("", "write groups"); err != nil {
		return g, err
	}
	err := retry(func() error {
		old, err := r.Store.Group(ctx, name)
		if err != nil {
			return err
		}
		if revision != 0 && revision != old.Revision {
			return &staleError{revision, old.Revision}
		}
		g = old
		if err := edit(&g); err != nil {
			return err
		}
		slices.Sort(g.Parents)
		g.UpdatedAt = r.Now().UTC()
		if err := g.Validate(); err != nil {
			return err
		}
		return r.commitGroup(ctx, &old, &g, validateOnly)
	})
	return g, asStale(err)
}

// DeleteGroup deletes a group that nothing inherits; revision as in Update.
// Errors: node.ErrGroupNotFound, ErrStale, ErrGroupInUse.
func (r *Registry) DeleteGroup(ctx context.Context, name string, revision int64, validateOnly bool) error {
	if err := accessOf(ctx).admin("", "write groups"); err != nil {
		return err
	}
	r.classifying.Lock()
	defer r.classifying.Unlock()
	return asStale(retry(func() error {
		mark, err := r.Store.GroupsMark(ctx)
		if err != nil {
			return err
		}
		use, err := r.Store.UseMark(ctx, name)
		if err != nil {
			return err
		}
		old, err := r.Store.Group(ctx, name)
		if err != nil {
			return err
		}
		if revision != 0 && revision != old.Revision {
			return &staleError{revision, old.Revision}
		}
		if err := r.checkUnused(ctx, name); err != nil || validateOnly {
			return err
		}
		c := store.NewChange()
		c.Audit(r.groupLine(ctx, node.ActionGroupDelete, name))
		c.GuardUse(name, use)
		c.RemoveGroup(mark, old)
		_, err = r.Store.Commit(ctx, c)
		return err
	}))
}

func (r *Registry) groupLine(ctx context.Context, action node.Action, name string) node.AuditLine {
	l := audit.Line(ctx, r.Now(), action)
	l.Object = "group/" + name
	return l
}

func (r *Registry) checkUnused(ctx context.Context, name string) error {
	const named = 20
	var users []string
	for child, err := range r.Store.Children(ctx, name) {
		if err != nil {
			return err
		}
		users = append(users, "group "+child)
		if len(users) == named {
			break
		}
	}
	for member, err := range r.Store.Members(ctx, name) {
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

// commitGroup checks a group against its parents and against every node that
// inherits it, and commits it. g gets its revision.
func (r *Registry) commitGroup(ctx context.Context, old *node.Group, g *node.Group, validateOnly bool) error {
	r.classifying.Lock()
	defer r.classifying.Unlock()
	mark, err := r.Store.GroupsMark(ctx)
	if err != nil {
		return err
	}
	view := &overlay{base: r.Store, group: *g, cache: map[string]node.Group{}, reached: map[string]map[string]node.Group{}}
	if err := checkParents(ctx, view, *g); err != nil {
		return err
	}
	c := store.NewChange()
	if old != nil && changesHeirs(*old, *g) {
		if err := r.checkHeirs(ctx, view, c); err != nil {
			return err
		}
	}
	c.PutGroup(mark, old, *g)
	if err := c.Err(); err != nil || validateOnly {
		return err
	}
	action := node.ActionGroupUpdate
	if old == nil {
		action = node.ActionGroupCreate
	}
	c.Audit(r.groupLine(ctx, action, g.Name))
	rev, err := r.Store.Commit(ctx, c)
	if err != nil {
		return fmt.Errorf("group %q: %w", g.Name, err)
	}
	g.Revision = rev
	return nil
}

// changesHeirs tells whether a write can change what nodes inherit.
func changesHeirs(old, g node.Group) bool {
	return !slices.Equal(old.Parents, g.Parents) || !reflect.DeepEqual(old.Classification, g.Classification)
}

// overlay shows the groups as they would be after a write.
type overlay struct {
	base    enc.Groups
	group   node.Group
	cache   map[string]node.Group
	reached map[string]map[string]node.Group // by the names of groups: many nodes are in the same ones
}

// check is checkNode, for many nodes.
func (o *overlay) check(ctx context.Context, n node.Node) error {
	key := strings.Join(n.Groups, " ")
	reached, known := o.reached[key]
	if !known {
		var err error
		if reached, err = reach(ctx, o, n.Groups); err != nil {
			return err
		}
		o.reached[key] = reached
	}
	return classify.Node(n, reached).Err(n.Certname)
}

// Group returns a group as it would be.
func (o *overlay) Group(ctx context.Context, name string) (node.Group, error) {
	if name == o.group.Name {
		return o.group, nil
	}
	if g, ok := o.cache[name]; ok {
		return g, nil
	}
	g, err := o.base.Group(ctx, name)
	if err == nil {
		o.cache[name] = g
	}
	return g, err
}

// checkParents makes sure that all ancestors exist and that there is no cycle.
// Whether they agree shows on the nodes, which may decide by themselves.
func checkParents(ctx context.Context, view *overlay, g node.Group) error {
	path := []string{g.Name}
	seen := map[string]bool{}
	var walk func(parents []string) error
	walk = func(parents []string) error {
		for _, p := range parents {
			if p == g.Name {
				return node.Invalid("parents", "would make a cycle: %s", strings.Join(append(path, p), " -> "))
			}
			if seen[p] {
				continue
			}
			seen[p] = true
			parent, err := view.Group(ctx, p)
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

// checkHeirs checks every node that inherits the group of the view, directly
// or not, and guards the change against others that join meanwhile.
func (r *Registry) checkHeirs(ctx context.Context, view *overlay, c *store.Change) error {
	heirs := map[string]bool{}
	var clash *node.ConflictError
	for queue := []string{view.group.Name}; len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if heirs[name] {
			continue
		}
		heirs[name] = true
		use, err := r.Store.UseMark(ctx, name)
		if err != nil {
			return err
		}
		c.GuardUse(name, use)
		for child, err := range r.Store.Children(ctx, name) {
			if err != nil {
				return err
			}
			queue = append(queue, child)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(heirs)) {
		for member, err := range r.Store.Members(ctx, name) {
			if err != nil {
				return err
			}
			if err := r.checkHeir(ctx, view, member, &clash); err != nil {
				return err
			}
		}
	}
	if clash != nil {
		slices.Sort(clash.Nodes)
		clash.Nodes = slices.Compact(clash.Nodes)
		return clash
	}
	return nil
}

// checkHeir checks one node and gathers the nodes that meet the same conflict.
func (r *Registry) checkHeir(ctx context.Context, view *overlay, name node.Certname, clash **node.ConflictError) error {
	n, err := r.Store.Node(ctx, name)
	if errors.Is(err, node.ErrNodeNotFound) {
		return nil // terminated since the index was read; the guard notices
	}
	if err != nil {
		return err
	}
	err = view.check(ctx, n)
	found, ok := errors.AsType[*node.ConflictError](err)
	switch {
	case err == nil:
	case !ok:
		return fmt.Errorf("node %q: %w", name, err)
	case *clash == nil:
		*clash = found
	case (*clash).Setting == found.Setting && (*clash).Groups == found.Groups:
		(*clash).Nodes = append((*clash).Nodes, name)
	}
	return nil
}
