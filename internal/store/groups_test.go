package store_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// putGroup creates a group, or writes it anew.
func (f *fixture) putGroup(name string, parents ...string) {
	f.t.Helper()
	mark := f.groupsMark()
	old, err := f.Group(f.t.Context(), name)
	g := node.Group{Name: name, Parents: parents}
	if errors.Is(err, node.ErrGroupNotFound) {
		f.do(func(c *store.Change) { c.PutGroup(mark, nil, g) })
		return
	}
	check(f.t, err)
	f.do(func(c *store.Change) { c.PutGroup(mark, &old, g) })
}

func TestIndexesFollowTheGroup(t *testing.T) {
	f := newFixture(t)
	f.putGroup("base")
	f.putGroup("base2")
	f.putGroup("web", "base", "base2")
	f.putGroup("db", "base")
	f.put(node.Node{Certname: "n1", Groups: []string{"web"}}, node.Node{Certname: "n2", Groups: []string{"web", "base"}})
	equal(t, "children of base", collect(t, f.Children(t.Context(), "base")), []string{"db", "web"})
	equal(t, "children of web", collect(t, f.Children(t.Context(), "web")), []string(nil))
	equal(t, "members of web", collect(t, f.Members(t.Context(), "web")), []node.Certname{"n1", "n2"})
	equal(t, "members of base", collect(t, f.Members(t.Context(), "base")), []node.Certname{"n2"})

	f.putGroup("web", "base2")
	equal(t, "children of base", collect(t, f.Children(t.Context(), "base")), []string{"db"})
	equal(t, "children of base2", collect(t, f.Children(t.Context(), "base2")), []string{"web"})

	for member := range f.Members(t.Context(), "web") { // one may stop early
		equal(t, "first", member, node.Certname("n1"))
		break
	}
}

func TestGroupsList(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"c", "a", "b"} {
		f.putGroup(name)
	}
	page, err := f.Groups(t.Context(), "", 2)
	check(t, err)
	equal(t, "first page", []any{len(page.Items), page.Items[0].Name, page.Items[1].Name, page.Next}, []any{2, "a", "b", "b"})
	page, err = f.Groups(t.Context(), page.Next, 2)
	check(t, err)
	equal(t, "second page", []any{len(page.Items), page.Items[0].Name, page.Next}, []any{1, "c", ""})
	if _, err := f.Group(t.Context(), "d"); !errors.Is(err, node.ErrGroupNotFound) {
		t.Errorf("no group: %v", err)
	}
}

// Whoever decided something by the groups as they were is told when one of
// them changed.
func TestGroupsMark(t *testing.T) {
	f := newFixture(t)
	equal(t, "mark of an empty store", f.groupsMark(), store.GroupsMark(0))
	f.putGroup("a")
	mark, old := f.groupsMark(), f.group("a")

	f.put(node.Node{Certname: "n1", Groups: []string{"a"}})
	equal(t, "mark after a node joined", f.groupsMark(), mark)

	f.do(func(c *store.Change) {
		c.GuardGroups(mark)
		c.PutNode(nil, node.Node{Certname: "n2", Groups: []string{"a"}})
	})
	f.putGroup("b")
	f.stale("another group is new", func(c *store.Change) {
		c.GuardGroups(mark)
		c.PutNode(nil, node.Node{Certname: "n3", Groups: []string{"a"}})
	})
	f.stale("another group is new", func(c *store.Change) { c.PutGroup(mark, &old, old) })
	f.stale("another group is new", func(c *store.Change) { c.RemoveGroup(mark, old) })
	f.stale("the group is there", func(c *store.Change) { c.PutGroup(f.groupsMark(), nil, old) })

	mark = f.groupsMark()
	b := f.group("b")
	f.do(func(c *store.Change) { c.RemoveGroup(mark, b) })
	f.stale("another group is gone", func(c *store.Change) { c.PutGroup(mark, &old, old) })
}

func (f *fixture) set(groups ...string) store.GroupSet {
	f.t.Helper()
	set, known, err := f.Set(f.t.Context(), groups)
	check(f.t, err)
	if !known {
		f.t.Fatalf("the set %v is not known", groups)
	}
	return set
}

// A write of a group fails where a node joined a set that it looked at, or sets
// something else there. Nodes that change otherwise, or leave, do it no harm.
func TestSetIsMarked(t *testing.T) {
	f := newFixture(t)
	guarded := func(s store.GroupSet) func(*store.Change) {
		return func(c *store.Change) {
			c.GuardSet(s)
			c.PutGroup(f.groupsMark(), nil, node.Group{Name: "new"})
		}
	}
	f.put(node.Node{Certname: "n1", Groups: []string{"a", "b"}})
	before := f.set("a", "b")
	f.put(node.Node{Certname: "n2", Groups: []string{"a", "b"}})
	f.stale("a node joined", guarded(before))

	before = f.set("a", "b")
	f.put(node.Node{Certname: "n1", Groups: []string{"a", "b"}, Labels: map[string]string{"k": "v"}})
	f.put(node.Node{Certname: "n3", Groups: []string{"a"}})
	equal(t, "after nodes changed otherwise", f.set("a", "b"), before)

	own := node.Classification{Environment: "test"}
	f.put(node.Node{Certname: "n1", Groups: []string{"a", "b"}, Classification: own})
	f.stale("a node sets something else", guarded(before))

	before = f.set("a", "b")
	f.put(node.Node{Certname: "n1", Classification: own})
	equal(t, "after a node left", f.set("a", "b"), before)
	f.do(guarded(before))
}

// A write of a group fails where a set came that it did not see.
func TestNewSetIsTold(t *testing.T) {
	f := newFixture(t)
	mark := func() store.SetsMark { return must(f.SetsMark(t.Context()))(t) }
	equal(t, "mark of an empty store", mark(), store.SetsMark(0))
	f.put(node.Node{Certname: "n1", Groups: []string{"a"}})
	before := mark()
	f.do(func(c *store.Change) {
		c.KnownSet(f.set("a"))
		c.PutNode(nil, node.Node{Certname: "n2", Groups: []string{"a"}})
	})
	equal(t, "mark after a node joined a known set", mark(), before)
	f.put(node.Node{Certname: "n3", Groups: []string{"a", "b"}})
	f.stale("a set is new", func(c *store.Change) {
		c.GuardSets(before)
		c.PutGroup(f.groupsMark(), nil, node.Group{Name: "new"})
	})
}

func TestSetsAndTheirNodes(t *testing.T) {
	f := newFixture(t)
	f.put(node.Node{Certname: "n1", Groups: []string{"a", "b"}}, node.Node{Certname: "n2", Groups: []string{"a", "b"}}, node.Node{Certname: "n3", Groups: []string{"a"}},
		node.Node{Certname: "n4"})
	names := func() (all [][]string) {
		for _, s := range collect(t, f.Sets(t.Context())) {
			all = append(all, s.Groups())
		}
		return all
	}
	equal(t, "sets", names(), [][]string{{"a"}, {"a", "b"}})
	equal(t, "nodes", collect(t, f.SetMembers(t.Context(), f.set("a", "b"))), []node.Certname{"n1", "n2"})
	f.put(node.Node{Certname: "n2", Groups: []string{"a"}})
	equal(t, "nodes after one moved", collect(t, f.SetMembers(t.Context(), f.set("a", "b"))), []node.Certname{"n1"})
	first, found, err := f.FirstOf(t.Context(), f.set("a"))
	equal(t, "first node", []any{first, found, err}, []any{node.Certname("n2"), true, nil})

	f.do(func(c *store.Change) { c.RemoveNode(f.node("n1")) })
	equal(t, "a set stays known without nodes", names(), [][]string{{"a"}, {"a", "b"}})
	_, found, err = f.FirstOf(t.Context(), f.set("a", "b"))
	equal(t, "no node", []any{found, err}, []any{false, nil})
}

// A set goes only where no node joined it since it was read. Who found it known starts over.
func TestRemoveSets(t *testing.T) {
	f := newFixture(t)
	f.put(node.Node{Certname: "n1", Groups: []string{"a"}})
	n1, empty := f.node("n1"), f.set("a")
	f.do(func(c *store.Change) { c.RemoveNode(n1) })
	f.put(node.Node{Certname: "n2", Groups: []string{"a"}})
	if err := f.RemoveSets(t.Context(), []store.GroupSet{empty}); !errors.Is(err, node.ErrStale) {
		t.Errorf("a node joined: got %v", err)
	}
	f.do(func(c *store.Change) { c.RemoveNode(f.node("n2")) })
	mark, empty := f.groupsMark(), f.set("a")
	check(t, f.RemoveSets(t.Context(), []store.GroupSet{empty}))
	if _, known, err := f.Set(t.Context(), []string{"a"}); known || err != nil {
		t.Errorf("the set is known: %v, %v", known, err)
	}
	f.stale("the set went", func(c *store.Change) {
		c.GuardGroups(mark)
		c.KnownSet(empty)
		c.PutNode(nil, node.Node{Certname: "n3", Groups: []string{"a"}})
	})
}

// However many sets go, no commit is beyond the engine's bounds.
func TestManySetsGo(t *testing.T) {
	f := newFixture(t)
	var sets []store.GroupSet
	for i := range 300 {
		n := node.Node{Certname: node.Certname(fmt.Sprintf("n%d", i)), Groups: []string{fmt.Sprintf("g%d", i)}}
		f.put(n)
		f.do(func(c *store.Change) { c.RemoveNode(f.node(n.Certname)) })
		sets = append(sets, f.set(n.Groups...))
	}
	check(t, f.RemoveSets(t.Context(), sets))
	f.keys("removed", "mark/set/")
}
