package registry

import (
	"context"
	"sync"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// maxCachedGroups bounds the cache. More groups are read from the store.
const maxCachedGroups = 1000

// groupCache keeps groups for the checks of nodes, as nearly every registration reads the same few. The groups belong
// to a mark. A commit that guards the mark fails if any group was written since, so a check never passes with an old
// group.
type groupCache struct {
	mu     sync.Mutex
	mark   store.GroupsMark
	groups map[string]node.Group
}

// at returns a reader of groups for a change that guards the mark.
func (c *groupCache) at(s *store.Store, mark store.GroupsMark) cachedGroups {
	return cachedGroups{c, s, mark}
}

// cachedGroups implements enc.Groups.
type cachedGroups struct {
	cache *groupCache
	store *store.Store
	mark  store.GroupsMark
}

// Group returns a group, which the caller must not change.
func (g cachedGroups) Group(ctx context.Context, name string) (node.Group, error) {
	if found, ok := g.cache.get(g.mark, name); ok {
		return found, nil
	}
	group, err := g.store.Group(ctx, name)
	if err == nil {
		g.cache.put(g.mark, group)
	}
	return group, err
}

func (c *groupCache) get(mark store.GroupsMark, name string) (node.Group, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mark != mark {
		return node.Group{}, false
	}
	group, ok := c.groups[name]
	return group, ok
}

// put adds a group that was read after the mark was. A newer mark drops what belongs to an older one.
func (c *groupCache) put(mark store.GroupsMark, group node.Group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if mark > c.mark || c.groups == nil {
		c.mark, c.groups = mark, map[string]node.Group{}
	}
	if mark == c.mark && len(c.groups) < maxCachedGroups {
		c.groups[group.Name] = group
	}
}
