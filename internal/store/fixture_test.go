package store_test

import (
	"context"
	"errors"
	"iter"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/internal/store/enginetest"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

// t0 is when everything in these tests begins.
var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fixture is a real store in a temporary folder.
type fixture struct {
	*store.Store
	engine store.Engine
	t      *testing.T
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	engine := enginetest.Open(t, nil)
	s, err := store.New(t.Context(), engine)
	check(t, err)
	return &fixture{s, engine, t}
}

func openEngine(t *testing.T, path string) *bolt.Engine {
	t.Helper()
	engine, err := bolt.Open(path, bolt.Options{})
	check(t, err)
	t.Cleanup(func() { engine.Close() })
	return engine
}

// do commits one change.
func (f *fixture) do(fill func(c *store.Change)) int64 {
	f.t.Helper()
	c := store.NewChange()
	c.Unaudited()
	fill(c)
	rev, err := f.Commit(f.t.Context(), c)
	check(f.t, err)
	return rev
}

// stale commits a change of which a guard must fail, and checks that nothing of it is applied.
func (f *fixture) stale(what string, fill func(c *store.Change)) {
	f.t.Helper()
	before := f.dump()
	c := store.NewChange()
	c.Unaudited()
	fill(c)
	_, err := f.Commit(f.t.Context(), c)
	guard, ok := errors.AsType[*store.GuardError](err)
	if !errors.Is(err, node.ErrStale) || !ok {
		f.t.Errorf("%s: got %v, want node.ErrStale and the guard", what, err)
	} else if guard.Have == guard.Want || guard.Key == "" {
		f.t.Errorf("%s: the guard is %+v", what, guard)
	}
	if after := f.dump(); !reflect.DeepEqual(after, before) {
		f.t.Errorf("%s: left %v\nof %v", what, after, before)
	}
}

// put registers nodes, or writes them anew.
func (f *fixture) put(nodes ...node.Node) {
	f.t.Helper()
	for _, n := range nodes {
		old, err := f.Node(f.t.Context(), n.Certname)
		if errors.Is(err, node.ErrNodeNotFound) {
			f.do(func(c *store.Change) { c.PutNode(nil, n) })
			continue
		}
		check(f.t, err)
		f.do(func(c *store.Change) { c.PutNode(&old, n) })
	}
}

func (f *fixture) node(name node.Certname) node.Node {
	f.t.Helper()
	return must(f.Node(f.t.Context(), name))(f.t)
}

func (f *fixture) group(name string) node.Group {
	f.t.Helper()
	return must(f.Group(f.t.Context(), name))(f.t)
}

func (f *fixture) groupsMark() store.GroupsMark {
	f.t.Helper()
	return must(f.GroupsMark(f.t.Context()))(f.t)
}

// dump is all that the engine holds: keys and revisions.
func (f *fixture) dump() map[string]int64 {
	f.t.Helper()
	recs, _, err := f.engine.List(f.t.Context(), "", "", 1_000_000)
	check(f.t, err)
	all := map[string]int64{}
	for _, rec := range recs {
		all[rec.Key] = rec.Revision
	}
	return all
}

// keys checks which keys with a prefix there are.
func (f *fixture) keys(what, prefix string, want ...string) {
	f.t.Helper()
	recs, _, err := f.engine.List(f.t.Context(), prefix, "", 1_000_000)
	check(f.t, err)
	var got []string
	for _, rec := range recs {
		got = append(got, rec.Key[len(prefix):])
	}
	if !slices.Equal(got, want) {
		f.t.Errorf("%s: keys below %s are %q, want %q", what, prefix, got, want)
	}
}

// names are those of the nodes that a filter selects, page by page.
func (f *fixture) names(filter store.NodeFilter, limit int) (names []string) {
	f.t.Helper()
	for after, pages := "", 0; ; pages++ {
		page, err := f.Nodes(f.t.Context(), filter, after, limit)
		check(f.t, err)
		if len(page.Items) > limit || pages > 100 {
			f.t.Fatalf("page %d has %d nodes of at most %d", pages, len(page.Items), limit)
		}
		for _, n := range page.Items {
			names = append(names, string(n.Certname))
		}
		if page.Next == "" {
			return names
		}
		after = page.Next
	}
}

func collect[T any](t *testing.T, seq iter.Seq2[T, error]) (all []T) {
	t.Helper()
	for v, err := range seq {
		check(t, err)
		all = append(all, v)
	}
	return all
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v\nwant %+v", what, got, want)
	}
}

// broken is an engine whose every answer is an error.
type broken struct{ store.Engine }

var errBroken = errors.New("disk on fire")

func (broken) Get(context.Context, string) (store.Record, error) { return store.Record{}, errBroken }

func (broken) List(context.Context, string, string, int) ([]store.Record, int64, error) {
	return nil, 0, errBroken
}
