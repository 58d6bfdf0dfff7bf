package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// A record comes back as it was written, with the revision that changed it.
func TestNodeRoundTrip(t *testing.T) {
	f := newFixture(t)
	n := node.Node{
		Certname: "web01", UID: "u1", State: node.Provisioned, Serials: []node.Serial{"00FF", "00FE"},
		Groups: []string{"base"}, Labels: map[string]string{"team": "x"}, Requests: []string{"r1"},
		CreatedAt: t0, UpdatedAt: t0,
		Classification: node.Classification{
			Environment: "production",
			Classes:     map[string]map[string]any{"ntp": {"servers": []any{"a", nil, true}}},
			Parameters:  map[string]any{"big": json.Number("12345678901234567890"), "float": json.Number("1.0"), "text": "<&>\u2028"},
		},
	}
	n.Revision = f.do(func(c *store.Change) { c.PutNode(nil, n) })
	equal(t, "node", f.node("web01"), n)
	_, err := f.Node(t.Context(), "web02")
	if !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("no node: %v", err)
	}
}

// Index keys follow the record, in the same commit.
func TestIndexesFollowTheNode(t *testing.T) {
	f := newFixture(t)
	step := func(what string, labels map[string]string, groups []string) {
		f.put(node.Node{Certname: "web01", UID: "u1", Labels: labels, Groups: groups})
	}
	step("registered", map[string]string{"role": "web", "example.com/team": "a"}, []string{"base", "web"})
	f.keys("registered", "ix/", "node-group/base/web01", "node-group/web/web01",
		"node-label/example.com/team=a/web01", "node-label/role=web/web01", "node-set/base,web/web01")

	step("changed", map[string]string{"role": "db", "example.com/team": "a", "empty": ""}, []string{"base", "db"})
	f.keys("changed", "ix/", "node-group/base/web01", "node-group/db/web01",
		"node-label/empty=/web01", "node-label/example.com/team=a/web01", "node-label/role=db/web01", "node-set/base,db/web01")

	step("bare", nil, nil)
	f.keys("bare", "ix/")

	step("labelled again", map[string]string{"role": "web"}, []string{"base"})
	old := f.node("web01")
	f.do(func(c *store.Change) { c.RemoveNode(old) })
	f.keys("removed", "ix/")
	f.keys("removed", "node/")
}

func TestNodeFilters(t *testing.T) {
	f := newFixture(t)
	f.put(
		node.Node{Certname: "a", Labels: map[string]string{"role": "web", "dc": "x"}, Groups: []string{"base"}},
		node.Node{Certname: "b", Labels: map[string]string{"role": "web", "dc": "y"}, Groups: []string{"base", "big"}},
		node.Node{Certname: "c", Labels: map[string]string{"role": "db", "dc": "x"}, Groups: []string{"base"}},
		node.Node{Certname: "d", Labels: map[string]string{"role": ""}},
		node.Node{Certname: "e.x", Labels: map[string]string{"role": "web"}},
		node.Node{Certname: "e", Labels: map[string]string{"role": "webapp"}, Groups: []string{"base2"}},
	)
	for _, test := range []struct {
		what   string
		filter store.NodeFilter
		want   []string
	}{
		{"all", store.NodeFilter{}, []string{"a", "b", "c", "d", "e", "e.x"}},
		{"a label, not one that begins like it", store.NodeFilter{Labels: map[string]string{"role": "web"}}, []string{"a", "b", "e.x"}},
		{"an empty label", store.NodeFilter{Labels: map[string]string{"role": ""}}, []string{"d"}},
		{"two labels", store.NodeFilter{Labels: map[string]string{"role": "web", "dc": "x"}}, []string{"a"}},
		{"a group, not one that begins like it", store.NodeFilter{Group: "base"}, []string{"a", "b", "c"}},
		{"a group and a label", store.NodeFilter{Group: "base", Labels: map[string]string{"role": "web"}}, []string{"a", "b"}},
		{"a label that no node has", store.NodeFilter{Labels: map[string]string{"nope": "x"}}, nil},
		{"a group and labels that exclude each other", store.NodeFilter{Group: "big", Labels: map[string]string{"dc": "x"}}, nil},
	} {
		for limit := 1; limit <= 7; limit++ {
			equal(t, fmt.Sprintf("%s, %d a page", test.what, limit), f.names(test.filter, limit), test.want)
		}
	}
}

// A page token stays good while nodes come and go around it.
func TestPagingWhileNodesChange(t *testing.T) {
	f := newFixture(t)
	for _, filter := range []store.NodeFilter{{}, {Group: "base"}} {
		for _, name := range []node.Certname{"a", "c", "e"} {
			f.put(node.Node{Certname: name, Groups: []string{"base"}})
		}
		page, err := f.Nodes(t.Context(), filter, "", 2)
		check(t, err)
		if len(page.Items) != 2 || page.Next != "c" || page.Revision != must(f.Revision(t.Context()))(t) {
			t.Fatalf("got %+v", page)
		}
		old := f.node("c")
		f.do(func(c *store.Change) { c.RemoveNode(old) })
		f.put(node.Node{Certname: "d", Groups: []string{"base"}})
		page, err = f.Nodes(t.Context(), filter, page.Next, 2)
		check(t, err)
		equal(t, "names", []node.Certname{page.Items[0].Certname, page.Items[1].Certname}, []node.Certname{"d", "e"})
		old = f.node("d")
		f.do(func(c *store.Change) { c.RemoveNode(old) })
	}
}

// A lost update is an error, and nothing of its commit is applied.
func TestNodeGuards(t *testing.T) {
	f := newFixture(t)
	f.put(node.Node{Certname: "web01", UID: "u1"})
	first := f.node("web01")
	changed := first
	changed.Labels = map[string]string{"k": "v"}
	f.stale("registered twice", func(c *store.Change) { c.PutNode(nil, node.Node{Certname: "web01", UID: "u2"}) })
	f.put(changed)
	f.stale("changed since", func(c *store.Change) { c.PutNode(&first, changed) })
	f.stale("changed since it was to go", func(c *store.Change) { c.RemoveNode(first) })
	f.stale("one of two", func(c *store.Change) {
		c.PutNode(nil, node.Node{Certname: "web02"})
		c.PutNode(&first, changed)
	})
	current := f.node("web01")
	f.do(func(c *store.Change) { c.RemoveNode(current) })
	f.stale("gone since", func(c *store.Change) { c.PutNode(&current, changed) })
}

// What is between may be left out, the last state of every node comes.
func TestWatchNodes(t *testing.T) {
	f := newFixture(t)
	after := must(f.Revision(t.Context()))(t)
	f.put(node.Node{Certname: "a", UID: "u1", Labels: map[string]string{"k": "v"}}, node.Node{Certname: "b", UID: "u2"})
	old, a := f.node("b"), f.node("a")
	last := f.do(func(c *store.Change) { c.RemoveNode(old) })
	got := map[node.Certname]store.NodeEvent{}
	for ev, err := range f.WatchNodes(t.Context(), after) {
		check(t, err)
		got[ev.Certname] = ev
		if ev.Revision == last {
			break
		}
	}
	equal(t, "a", got["a"], store.NodeEvent{Certname: "a", Revision: a.Revision, Node: &a})
	equal(t, "b", got["b"], store.NodeEvent{Certname: "b", Revision: last})

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range f.WatchNodes(ctx, last) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
}

// A damaged record fails what needs it, and is named.
func TestDamagedRecord(t *testing.T) {
	f := newFixture(t)
	f.put(node.Node{Certname: "a"}, node.Node{Certname: "c"})
	_, err := f.engine.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: "node/b", Value: []byte("{")}}})
	check(t, err)
	if _, err := f.Node(t.Context(), "b"); err == nil || err.Error() != `record "node/b" is damaged: unexpected EOF` {
		t.Errorf("got %v", err)
	}
	if _, err := f.Nodes(t.Context(), store.NodeFilter{}, "", 10); err == nil {
		t.Error("a list leaves the damaged node out in silence")
	}
	f.node("c")
}

func TestEngineErrorsPass(t *testing.T) {
	f := newFixture(t)
	v, err := store.NewView(t.Context(), f.engine)
	check(t, err)
	equal(t, "view", must(v.Revision(t.Context()))(t), must(f.Revision(t.Context()))(t))
	if _, err := store.NewView(t.Context(), broken{f.engine}); !errors.Is(err, errBroken) {
		t.Errorf("NewView: %v", err)
	}
	if _, err := store.New(t.Context(), broken{f.engine}); !errors.Is(err, errBroken) {
		t.Errorf("New: %v", err)
	}
	check(t, f.engine.Close())
	for what, err := range map[string]error{
		"Node":            second(f.Node(t.Context(), "a")),
		"Nodes":           second(f.Nodes(t.Context(), store.NodeFilter{}, "", 1)),
		"Nodes by label":  second(f.Nodes(t.Context(), store.NodeFilter{Labels: map[string]string{"k": "v"}}, "", 1)),
		"LastTombstone":   second(f.LastTombstone(t.Context(), "a", all)),
		"Group":           second(f.Group(t.Context(), "a")),
		"GroupsMark":      second(f.GroupsMark(t.Context())),
		"Pending":         second(f.Pending(t.Context(), "", 1)),
		"CertificatesOf":  second(f.CertificatesOf(t.Context(), "a", "", 1)),
		"those of a life": second(f.CertificatesOfLife(t.Context(), "a", "u")),
		"ENC":             second(f.ENC(t.Context())),
		"SetENC":          f.SetENC(t.Context(), store.ENCSettings{}),
		"Commit":          second(f.Commit(t.Context(), store.NewChange())),
		"Intents":         firstError(f.Intents(t.Context())),
		"Members":         firstError(f.Members(t.Context(), "g")),
		"Tombstones":      firstError(f.TombstonesBefore(t.Context(), t0)),
		"WatchNodes":      firstError(f.WatchNodes(t.Context(), 0)),
		"RevocationsOf":   second(f.RevocationsOf(t.Context(), "a", "u")),
		"Certificates":    second(f.Certificates(t.Context(), "", 1)),
		"Groups":          second(f.Groups(t.Context(), "", 1)),
		"one Certificate": second(f.Certificate(t.Context(), "00FF")),
	} {
		if !errors.Is(err, node.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func firstError[T any](seq func(func(T, error) bool)) error {
	for _, err := range seq {
		return err
	}
	return nil
}

// A record that a caller makes too large is refused by name. One that grows as espm works is not.
func TestRecordIsTooLarge(t *testing.T) {
	f := newFixture(t)
	n := node.Node{Certname: "web01", UID: "1", Classification: node.Classification{Parameters: map[string]any{"p": ""}}}
	n.Classification.Parameters["p"] = strings.Repeat("v", store.MaxRecord)
	for what, fill := range map[string]func(c *store.Change){
		"node":  func(c *store.Change) { c.PutNode(nil, n) },
		"group": func(c *store.Change) { c.PutGroup(0, nil, node.Group{Name: "web01", Classification: n.Classification}) },
	} {
		c := store.NewChange()
		c.Unaudited()
		fill(c)
		_, err := f.Commit(t.Context(), c)
		if !errors.Is(err, node.ErrInvalid) || !strings.Contains(err.Error(), `"web01"`) || !strings.Contains(err.Error(), "1 MiB") {
			t.Errorf("%s: got %v, want ErrInvalid with its name and the rule", what, err)
		}
	}
	n.Classification.Parameters["p"] = strings.Repeat("v", store.MaxRecord-1000)
	f.put(n)
	n = f.node("web01")
	n.Requests = []string{strings.Repeat("r", 2000)}
	f.put(n)
}

// The largest node that is legal fits one commit of every engine, with all that comes with it.
func TestLargestNodeFitsOneCommit(t *testing.T) {
	f := newFixture(t)
	n := node.Node{Certname: "web01", UID: "1", Owner: "token:ci", ClaimBy: t0, Labels: map[string]string{}}
	for i := range 64 {
		n.Labels[fmt.Sprint("key", i)] = "v"
	}
	for i := range 32 {
		n.Groups = append(n.Groups, fmt.Sprint("g", i))
	}
	f.do(func(c *store.Change) {
		c.GuardGroups(f.groupsMark())
		c.PutRequest(node.Request{ID: "r", Principal: "token:ci", Certname: "web01", UID: "1"})
		c.PutIntent(node.IssueIntent{UID: "1", Certname: "web01"})
		c.Audit(node.AuditLine{ID: "l", Time: node.AuditTime{Time: t0}, Principal: "p", Action: node.ActionProvision, Outcome: "ok"})
		c.PutNode(nil, n)
	})
	equal(t, "groups", f.node("web01").Groups, n.Groups)
}
