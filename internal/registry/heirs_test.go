package registry_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

func (f *fixture) registerOwn(t *testing.T, name node.Certname, tier string, groups ...string) {
	t.Helper()
	n := node.Node{Certname: name, Groups: groups, Classification: node.Classification{Parameters: map[string]any{"tier": tier}}}
	if _, err := f.Register(self(t), n, "", false); err != nil {
		t.Fatal(err)
	}
}

// Where groups come to disagree, the nodes' own values may decide; the nodes that don't are named.
func TestNodesDecideWhatAGroupUpdateMakesDisagree(t *testing.T) {
	f := newFixture(t)
	f.group(t, "web", "")
	f.group(t, "gold", "gold")
	f.registerOwn(t, "own1.test", "1", "web", "gold")
	f.registerOwn(t, "own2.test", "2", "web", "gold")
	f.register(t, "bare.test", "web", "gold")
	_, err := f.UpdateGroup(self(t), "web", 0, setTier("silver"), false)
	if conflict, ok := errors.AsType[*node.ConflictError](err); !ok || !slices.Equal(conflict.Nodes, []node.Certname{"bare.test"}) {
		t.Fatalf("got %v", err)
	}
	f.terminate(t, "bare.test", "", 0)
	if _, err := f.UpdateGroup(self(t), "web", 0, setTier("silver"), false); err != nil {
		t.Errorf("all nodes decide: %v", err)
	}
	if _, err := f.Register(self(t), node.Node{Certname: "bare.test", Groups: []string{"web", "gold"}}, "", false); !errors.Is(err, node.ErrConflict) {
		t.Errorf("a node that does not: %v", err)
	}
}

// A group update reads no node where no set of groups comes to disagree, whatever was settled by nodes before.
func TestGroupUpdateReadsNoNodes(t *testing.T) {
	f := newFixture(t)
	f.group(t, "base", "")
	f.group(t, "web", "", "base")
	f.group(t, "gold", "gold")
	f.group(t, "silver", "silver")
	for i := range 5 {
		f.register(t, node.Certname(fmt.Sprintf("n%d.test", i)), "web")
		f.registerOwn(t, node.Certname(fmt.Sprintf("own%d.test", i)), "1", "web", "gold", "silver")
	}
	var read atomic.Int64
	f.engine.onGet(func(ctx context.Context, key string) (store.Record, error) {
		if strings.HasPrefix(key, "node/") {
			read.Add(1)
		}
		return f.engine.Engine.Get(ctx, key)
	})
	if _, err := f.UpdateGroup(self(t), "base", 0, setTier("bronze"), false); err != nil {
		t.Fatal(err)
	}
	if read.Load() != 0 {
		t.Errorf("read %d nodes", read.Load())
	}
}

// Who registers a node does not wait for a group update, and the update sees what
// came while it looked.
func TestNodesComeWhileAGroupIsUpdated(t *testing.T) {
	own := node.Classification{Parameters: map[string]any{"tier": "1"}}
	for what, test := range map[string]struct {
		come    node.Node
		refused bool
	}{
		"in a new set that comes to disagree":    {node.Node{Certname: "new.test", Groups: []string{"gold", "web"}}, true},
		"in a new set, and decides":              {node.Node{Certname: "new.test", Groups: []string{"gold", "web"}, Classification: own}, false},
		"in a known set that comes to disagree":  {node.Node{Certname: "new.test", Groups: []string{"silver", "web"}}, true},
		"in a known set, and decides":            {node.Node{Certname: "new.test", Groups: []string{"silver", "web"}, Classification: own}, false},
		"in a known set that does not disagree":  {node.Node{Certname: "new.test", Groups: []string{"web"}}, false},
		"in a new set without the written group": {node.Node{Certname: "new.test", Groups: []string{"gold"}}, false},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t)
			f.group(t, "web", "")
			f.group(t, "gold", "gold")
			f.group(t, "silver", "silver")
			f.register(t, "web1.test", "web")
			f.registerOwn(t, "own.test", "1", "silver", "web")
			f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
				if slices.ContainsFunc(b.Puts, func(p store.Put) bool { return p.Key == "group/web" }) {
					f.engine.onCommit(nil)
					if _, err := f.Register(self(t), test.come, "", false); err != nil {
						t.Error(err)
					}
				}
				return f.engine.Engine.Commit(ctx, b)
			})
			_, err := f.UpdateGroup(self(t), "web", 0, setTier("bronze"), false)
			if test.refused != errors.Is(err, node.ErrConflict) || !test.refused && err != nil {
				t.Errorf("got %v", err)
			}
			if _, err := f.Classify(self(t), "new.test"); err != nil {
				t.Errorf("the node that came: %v", err)
			}
		})
	}
}

// A set of groups whose nodes are gone is forgotten. It stands in no group's way.
func TestSetsWithoutNodes(t *testing.T) {
	f := newFixture(t)
	sets := func() (names []string) {
		for set, err := range f.store.Sets(self(t)) {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, set.Name)
		}
		return names
	}
	f.group(t, "web", "")
	f.group(t, "gold", "gold")
	f.register(t, "gone.test", "web", "gold")
	f.register(t, "web1.test", "web")
	f.terminate(t, "gone.test", "", 0)
	if _, err := f.UpdateGroup(self(t), "web", 0, setTier("bronze"), false); err != nil {
		t.Errorf("a set without nodes disagrees: %v", err)
	}
	if got := sets(); !slices.Equal(got, []string{"gold,web", "web"}) {
		t.Errorf("sets %q", got)
	}
	if err := registry.SweepSets(self(t), f.Registry); err != nil {
		t.Fatal(err)
	}
	if got := sets(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("sets after the sweep: %q", got)
	}
	f.terminate(t, "web1.test", "", 0)
	if err := f.DeleteGroup(self(t), "web", 0, true); err != nil || len(sets()) != 1 {
		t.Errorf("validated only: %v, sets %q", err, sets())
	}
	if err := f.DeleteGroup(self(t), "web", 0, false); err != nil || len(sets()) != 0 {
		t.Errorf("deleted: %v, sets %q", err, sets())
	}
}

// A group that a node joins while it is deleted stays.
func TestNodeComesWhileAGroupIsDeleted(t *testing.T) {
	for _, known := range []bool{false, true} {
		f := newFixture(t)
		f.group(t, "web", "")
		if known {
			f.register(t, "gone.test", "web")
			f.terminate(t, "gone.test", "", 0)
		}
		f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
			f.engine.onCommit(nil)
			f.register(t, "web1.test", "web")
			return f.engine.Engine.Commit(ctx, b)
		})
		if err := f.DeleteGroup(self(t), "web", 0, false); !errors.Is(err, node.ErrGroupInUse) {
			t.Errorf("known %v: got %v", known, err)
		}
	}
}

// What a set of groups may have in all is bound, whatever its nodes have of their own.
func TestGroupUpdateKeepsTheBoundOfASet(t *testing.T) {
	f := newFixture(t)
	large := func(g *node.Group) error {
		g.Classification.Parameters = map[string]any{g.Name: strings.Repeat("x", 900_000)}
		return nil
	}
	for _, name := range []string{"a", "b", "c"} {
		f.group(t, name, "")
	}
	f.register(t, "n1.test", "a", "b", "c")
	for _, name := range []string{"a", "b"} {
		if _, err := f.UpdateGroup(self(t), name, 0, large, false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.UpdateGroup(self(t), "c", 0, large, false); !errors.Is(err, node.ErrInvalid) || !strings.Contains(err.Error(), `node "n1.test"`) {
		t.Errorf("got %v", err)
	}
	f.terminate(t, "n1.test", "", 0)
	if _, err := f.UpdateGroup(self(t), "c", 0, large, false); err != nil {
		t.Errorf("no node is in all three: %v", err)
	}
}

// Each set that comes to disagree is guarded, within what one commit of the engine takes.
func TestManySetsComeToDisagree(t *testing.T) {
	f := newFixture(t)
	f.group(t, "web", "")
	most := f.store.Fit(math.MaxInt, 1)
	const sets = 130
	for i := range sets {
		gold := fmt.Sprintf("gold%d", i)
		f.group(t, gold, "gold")
		f.registerOwn(t, node.Certname(fmt.Sprintf("n%d.test", i)), "1", "web", gold)
	}
	_, err := f.UpdateGroup(self(t), "web", 0, setTier("silver"), false)
	if sets > most != errors.Is(err, node.ErrInvalid) || sets <= most && err != nil {
		t.Errorf("%d sets, the engine takes %d: got %v", sets, most, err)
	}
}

// Registries that share a store, as on several machines, share no lock.
func TestGroupUpdateBesideAnotherRegistry(t *testing.T) {
	f := newFixture(t)
	f.group(t, "web", "")
	f.group(t, "gold", "gold")
	other := registry.New(f.options)
	f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
		f.engine.onCommit(nil)
		if _, err := other.UpdateGroup(self(t), "gold", 0, setTier("other"), false); err != nil {
			t.Error(err)
		}
		return f.engine.Engine.Commit(ctx, b)
	})
	n := node.Node{Certname: "n1.test", Groups: []string{"gold"}}
	if _, err := f.Register(self(t), n, "", false); err != nil {
		t.Fatal(err)
	}
	c, err := f.Classify(self(t), "n1.test")
	if err != nil || c.Parameters["tier"] != "other" {
		t.Errorf("got %v, %v", c.Parameters, err)
	}
}
