package store_test

import (
	"errors"
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

// A group may only go if nobody joined since that was looked up.
func TestUseMark(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"a", "other"} {
		f.putGroup(name)
	}
	use := func() store.UseMark { return must(f.UseMark(t.Context(), "a"))(t) }
	remove := func(m store.UseMark) func(c *store.Change) {
		mark, old := f.groupsMark(), f.group("a")
		return func(c *store.Change) { c.GuardUse("a", m); c.RemoveGroup(mark, old) }
	}
	before := use()
	f.put(node.Node{Certname: "n1", Groups: []string{"a"}})
	f.stale("a node joined", remove(before))

	before = use()
	f.put(node.Node{Certname: "n1", Groups: []string{"a"}, Labels: map[string]string{"k": "v"}})
	f.put(node.Node{Certname: "n2", Groups: []string{"other"}})
	equal(t, "mark after nodes changed otherwise", use(), before)

	own := node.Classification{Environment: "test"}
	f.put(node.Node{Certname: "n1", Groups: []string{"a"}, Classification: own})
	f.stale("a node sets something else", remove(before))

	before = use()
	f.put(node.Node{Certname: "n1"})
	equal(t, "mark after a node left", use(), before)
	f.putGroup("child", "a")
	f.stale("a group joined", remove(before))

	f.putGroup("child")
	f.do(remove(use()))
	f.keys("removed", "group/", "child", "other")
	f.keys("removed", "mark/group-use/", "other")
	f.keys("removed", "ix/group-child/")
}
