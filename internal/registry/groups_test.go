package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

func (f *fixture) group(t *testing.T, name string, value string, parents ...string) {
	t.Helper()
	g := node.Group{Name: name, Parents: parents}
	if value != "" {
		g.Classification.Parameters = map[string]any{"tier": value}
	}
	if _, err := f.CreateGroup(self(t), g, false); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) register(t *testing.T, name node.Certname, groups ...string) {
	t.Helper()
	if _, err := f.Register(self(t), node.Node{Certname: name, Groups: groups}, "", false); err != nil {
		t.Fatal(err)
	}
}

func setTier(value string) func(*node.Group) error {
	return func(g *node.Group) error { g.Classification.Parameters = map[string]any{"tier": value}; return nil }
}

func TestConflictIsRefusedOnTheNode(t *testing.T) {
	f := newFixture(t)
	f.group(t, "gold", "gold")
	f.group(t, "silver", "silver")
	_, err := f.Register(self(t), node.Node{Certname: "web1.test", Groups: []string{"silver", "gold"}}, "", false)
	conflict, ok := errors.AsType[*node.ConflictError](err)
	if !ok || conflict.Setting != "parameters[tier]" || conflict.Groups != [2]string{"gold", "silver"} {
		t.Fatalf("got %v", err)
	}
	own := node.Node{Certname: "web1.test", Groups: []string{"silver", "gold"},
		Classification: node.Classification{Parameters: map[string]any{"tier": json.Number("1")}}}
	if _, err := f.Register(self(t), own, "", false); err != nil {
		t.Errorf("the node itself decides: %v", err)
	}
}

func TestConflictIsRefusedOnTheGroup(t *testing.T) {
	f := newFixture(t)
	f.group(t, "base", "")
	f.group(t, "web", "", "base")
	f.group(t, "gold", "gold")
	for i := range 3 {
		f.register(t, node.Certname(fmt.Sprintf("web%d.test", i)), "web", "gold")
	}
	f.register(t, "other.test", "web")
	_, err := f.UpdateGroup(self(t), "base", 0, setTier("bronze"), false)
	conflict, ok := errors.AsType[*node.ConflictError](err)
	if !ok || !slices.Equal(conflict.Nodes, []node.Certname{"web0.test", "web1.test", "web2.test"}) {
		t.Fatalf("got %v", err)
	}
	if conflict.Groups != [2]string{"base", "gold"} {
		t.Errorf("named %v", conflict.Groups)
	}
	if g, err := f.store.Group(self(t), "base"); err != nil || len(g.Classification.Parameters) != 0 {
		t.Errorf("the refused write shows: %+v, %v", g, err)
	}
	if _, err := f.UpdateGroup(self(t), "base", 0, setTier("gold"), false); err != nil {
		t.Errorf("agreeing values: %v", err)
	}
}

func TestCycles(t *testing.T) {
	f := newFixture(t)
	f.group(t, "a", "")
	f.group(t, "b", "", "a")
	f.group(t, "c", "", "b")
	_, err := f.UpdateGroup(self(t), "a", 0, func(g *node.Group) error { g.Parents = []string{"c"}; return nil }, false)
	if !errors.Is(err, node.ErrInvalid) || !strings.Contains(err.Error(), "a -> c -> b -> a") {
		t.Errorf("got %v", err)
	}
	if _, err := f.CreateGroup(self(t), node.Group{Name: "d", Parents: []string{"nowhere"}}, false); !errors.Is(err, node.ErrGroupNotFound) {
		t.Errorf("an unknown parent: got %v", err)
	}
}

func TestGroupsInUseStay(t *testing.T) {
	f := newFixture(t)
	f.group(t, "base", "")
	f.group(t, "web", "", "base")
	f.register(t, "web1.test", "web")
	for name, user := range map[string]string{"base": "group web", "web": "node web1.test"} {
		err := f.DeleteGroup(self(t), name, 0, false)
		if !errors.Is(err, node.ErrGroupInUse) || !strings.Contains(err.Error(), user) {
			t.Errorf("%s: got %v, want it to name %s", name, err, user)
		}
	}
	f.terminate(t, "web1.test", "", 0)
	for _, name := range []string{"web", "base"} {
		if err := f.DeleteGroup(self(t), name, 0, false); err != nil {
			t.Error(err)
		}
	}
}

func TestStaleRevisionIsRefused(t *testing.T) {
	f := newFixture(t)
	f.group(t, "web", "")
	f.register(t, "web1.test", "web")
	n, err := f.Get(self(t), "web1.test", "")
	if err != nil {
		t.Fatal(err)
	}
	edit := func(n *node.Node) error { n.Labels = map[string]string{"a": "b"}; return nil }
	changed, err := f.Update(self(t), "web1.test", registry.Expect{Revision: n.Revision}, edit, false)
	if err != nil || changed.Revision <= n.Revision {
		t.Fatalf("got %+v, %v", changed, err)
	}
	if _, err := f.Update(self(t), "web1.test", registry.Expect{Revision: n.Revision}, edit, false); !errors.Is(err, node.ErrStale) {
		t.Errorf("node: got %v", err)
	}
	if _, err := f.UpdateGroup(self(t), "web", 1, setTier("x"), false); !errors.Is(err, node.ErrStale) {
		t.Errorf("group: got %v", err)
	}
	if err := f.DeleteGroup(self(t), "web", 1, false); !errors.Is(err, node.ErrStale) {
		t.Errorf("delete: got %v", err)
	}
}

// However nodes and groups are written at once, no node ends in a conflict,
// in a group that is gone, or with an ancestor that is its heir.
func TestWritesAtOnceKeepTheRules(t *testing.T) {
	f := newFixture(t)
	names := []string{"a", "b", "c"}
	for _, name := range names {
		f.group(t, name, "")
	}
	ctx := node.AsSelf(context.Background())
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 15 {
				g, p := names[(i+j)%3], names[(i+2*j+1)%3]
				_, _ = f.UpdateGroup(ctx, g, 0, setTier(fmt.Sprint(j%2)), false)
				_, _ = f.UpdateGroup(ctx, g, 0, func(g *node.Group) error { g.Parents = []string{p}; return nil }, false)
				if f.DeleteGroup(ctx, names[j%3], 0, false) == nil {
					_, _ = f.CreateGroup(ctx, node.Group{Name: names[j%3]}, false)
				}
			}
		})
		wg.Go(func() {
			for j := range 15 {
				name := node.Certname(fmt.Sprintf("n%d-%d.test", i, j))
				_, _ = f.Register(ctx, node.Node{Certname: name, Groups: []string{names[j%3], names[(j+i)%3]}[:1+i%2]}, "", false)
				_, _ = f.Update(ctx, name, registry.Expect{}, func(n *node.Node) error { n.Groups = []string{names[(j+1)%3], names[(j+2)%3]}; return nil }, false)
			}
		})
	}
	wg.Wait()
	page, err := f.store.Nodes(ctx, store.NodeFilter{}, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Items) == 0 {
		t.Fatal("no node was registered")
	}
	for _, n := range page.Items {
		if _, err := enc.Classify(ctx, f.store, n.Certname); err != nil {
			t.Errorf("%s in %v: %v", n.Certname, n.Groups, err)
		}
	}
}
