package registry_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// enroll registers a bare node.
func (f *fixture) enroll(t *testing.T, name node.Certname) node.Node {
	t.Helper()
	n, err := f.Register(self(t), node.Node{Certname: name}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// look asks for a node's catalog, as the ENC does, and returns when.
func (f *fixture) look(t *testing.T, name node.Certname) time.Time {
	t.Helper()
	n, err := f.store.Node(self(t), name)
	if err != nil {
		t.Fatal(err)
	}
	at := f.clock.Now()
	f.Sightings().Saw(self(t), n)
	return at
}

func (f *fixture) flush(t *testing.T) {
	t.Helper()
	if err := f.Sightings().Flush(self(t)); err != nil {
		t.Fatal(err)
	}
}

// seen checks when a live node was last seen, by Get and by List.
func (f *fixture) seen(t *testing.T, name node.Certname, want time.Time) {
	t.Helper()
	n, err := f.Get(self(t), name, "")
	if err != nil || !n.LastSeenAt.Equal(want) {
		t.Errorf("%s was last seen at %v, %v, want %v", name, n.LastSeenAt, err, want)
	}
	page, err := f.List(self(t), registry.NodeQuery{}, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(page.Items, func(n node.Node) bool { return n.Certname == name })
	if got := page.Items[i].LastSeenAt; !got.Equal(want) {
		t.Errorf("%s is listed as last seen at %v, want %v", name, got, want)
	}
}

// stored tells whether there is a record of when a node was last seen.
func (f *fixture) stored(t *testing.T, name node.Certname) bool {
	t.Helper()
	_, err := f.engine.Get(self(t), "seen/"+string(name))
	if err != nil && !errors.Is(err, store.ErrNoKey) {
		t.Fatal(err)
	}
	return err == nil
}

func TestLastSeen(t *testing.T) {
	f := newFixture(t)
	before := f.enroll(t, "web1.test")
	f.seen(t, "web1.test", time.Time{})
	at := f.look(t, "web1.test")
	f.seen(t, "web1.test", at) // from memory
	if f.stored(t, "web1.test") {
		t.Error("a look-up went to the store by itself")
	}
	f.flush(t)
	f.seen(t, "web1.test", at)
	f.clock.advance(time.Minute)
	f.look(t, "web1.test") // lost in the crash
	f.restart()
	f.seen(t, "web1.test", at) // from the store
	f.clock.advance(time.Minute)
	at = f.look(t, "web1.test")
	f.seen(t, "web1.test", at)
	f.flush(t)
	f.restart()
	f.seen(t, "web1.test", at)
	if n, err := f.Get(self(t), "web1.test", ""); err != nil || n.Revision != before.Revision || !n.UpdatedAt.Equal(before.UpdatedAt) {
		t.Errorf("the node changed: %+v, was %+v", n, before)
	}
}

// The last flush comes when the daemon stops; a watch of nodes sees none.
func TestLastSeenIsStoredAtTheEnd(t *testing.T) {
	f := newFixture(t)
	n := f.enroll(t, "web1.test")
	at := f.look(t, "web1.test")
	ctx, cancel := context.WithCancel(self(t))
	cancel()
	f.Sightings().Run(ctx)
	f.restart()
	f.seen(t, "web1.test", at)
	f.enroll(t, "web2.test")
	for ev, err := range f.store.WatchNodes(self(t), n.Revision) {
		if err != nil || ev.Certname != "web2.test" {
			t.Errorf("the watch saw %+v, %v", ev, err)
		}
		break
	}
}

// An earlier life leaves nothing to its successor, nor to the store.
func TestLastSeenOfAnotherLife(t *testing.T) {
	f := newFixture(t)
	old := f.enroll(t, "web1.test")
	f.look(t, "web1.test")
	f.flush(t)
	f.look(t, "web1.test")
	if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web1.test", UID: old.UID}, 0, false); err != nil {
		t.Fatal(err)
	}
	if f.stored(t, "web1.test") {
		t.Error("the record outlived the node")
	}
	f.flush(t)
	if f.stored(t, "web1.test") {
		t.Error("a flush brought the record back")
	}
	f.Sightings().Saw(self(t), old) // a slow look-up of the earlier life
	f.enroll(t, "web1.test")
	f.seen(t, "web1.test", time.Time{})
	at := f.look(t, "web1.test")
	f.Sightings().Saw(self(t), old)
	f.seen(t, "web1.test", at)
	f.flush(t)
	f.seen(t, "web1.test", at)
}

// A node that changes, or goes, between the look-up and the flush, or in it,
// does not keep the others from being stored.
func TestFlushWhileNodesChange(t *testing.T) {
	f := newFixture(t)
	for _, name := range []node.Certname{"changed.test", "gone.test", "gone-now.test", "same.test"} {
		f.enroll(t, name)
		f.look(t, name)
	}
	change := func(name node.Certname) {
		if _, err := f.Update(self(t), name, registry.Expect{}, func(n *node.Node) error { n.Labels = map[string]string{"a": "b"}; return nil }, false); err != nil {
			t.Error(err)
		}
	}
	change("changed.test")
	end := func(name node.Certname) {
		if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: name}, 0, false); err != nil {
			t.Error(err)
		}
	}
	end("gone.test")
	tries := 0
	f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
		if b.Unwatched {
			if tries++; tries == 2 { // after the records were read anew
				f.engine.onCommit(nil)
				end("gone-now.test")
				change("same.test")
			}
		}
		return f.engine.Engine.Commit(ctx, b)
	})
	f.flush(t)
	for name, want := range map[node.Certname]bool{"changed.test": true, "same.test": true, "gone.test": false, "gone-now.test": false} {
		if got := f.stored(t, name); got != want {
			t.Errorf("%s: stored %v, want %v", name, got, want)
		}
	}
	if tries != 2 {
		t.Errorf("%d tries, the test is none", tries)
	}
}

// registerAndSee registers nodes, as many at a time as every engine takes in one commit, and has them seen.
func (f *fixture) registerAndSee(t *testing.T, many int) {
	t.Helper()
	const some = 100
	for first := 0; first < many; first += some {
		c := store.NewChange()
		c.Unaudited()
		name := func(i int) node.Certname { return node.Certname(fmt.Sprintf("n%05d.test", i)) }
		for i := first; i < min(first+some, many); i++ {
			c.PutNode(nil, node.Node{Certname: name(i), UID: "u"})
		}
		rev, err := f.store.Commit(self(t), c)
		if err != nil {
			t.Fatal(err)
		}
		for i := first; i < min(first+some, many); i++ {
			f.Sightings().Saw(self(t), node.Node{Certname: name(i), UID: "u", Revision: rev})
		}
	}
}

// A node that never stops changing holds up itself alone, not its batch, nor those behind it.
func TestFlushOfANodeThatKeepsChanging(t *testing.T) {
	f := newFixture(t)
	const many = 1500 // two batches
	f.registerAndSee(t, many)
	const busy = "n00007.test"
	changes := 0
	f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
		if b.Unwatched && slices.ContainsFunc(b.Puts, func(p store.Put) bool { return p.Key == "seen/"+busy }) {
			changes++
			if _, err := f.Update(self(t), busy, registry.Expect{}, func(n *node.Node) error { n.Labels = map[string]string{"n": fmt.Sprint(changes)}; return nil }, false); err != nil {
				t.Error(err)
			}
		}
		return f.engine.Engine.Commit(ctx, b)
	})
	if err := f.Sightings().Flush(self(t)); !errors.Is(err, node.ErrStale) {
		t.Errorf("got %v", err)
	}
	for i := range many {
		if name := node.Certname(fmt.Sprintf("n%05d.test", i)); f.stored(t, name) != (name != busy) {
			t.Errorf("%s: stored: %v", name, name == busy)
		}
	}
	f.engine.onCommit(nil)
	f.flush(t)
	if !f.stored(t, busy) {
		t.Error("it is not stored when it holds still")
	}
}

// What can't be stored stays, and is known meanwhile; what was seen since wins.
func TestFlushFails(t *testing.T) {
	f := newFixture(t)
	f.enroll(t, "web1.test")
	f.enroll(t, "web2.test")
	first := f.look(t, "web1.test")
	f.look(t, "web2.test")
	f.clock.advance(time.Hour)
	var second time.Time
	f.engine.onCommit(func(context.Context, store.Batch) (int64, error) {
		f.seen(t, "web1.test", first)
		second = f.look(t, "web2.test")
		return 0, fmt.Errorf("%w: no space left", node.ErrUnavailable)
	})
	if err := f.Sightings().Flush(self(t)); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	f.engine.onCommit(nil)
	f.seen(t, "web1.test", first)
	f.seen(t, "web2.test", second)
	f.flush(t)
	f.restart()
	f.seen(t, "web1.test", first)
	f.seen(t, "web2.test", second)
}

// Look-ups, flushes and terminations at once: no record without its node.
func TestSightingsAtOnce(t *testing.T) {
	f := newFixture(t)
	var nodes []node.Node
	for i := range 60 {
		nodes = append(nodes, f.enroll(t, node.Certname(fmt.Sprintf("n%d.test", i))))
	}
	var wg sync.WaitGroup
	for part := range 3 {
		wg.Go(func() {
			for _, n := range nodes {
				f.Sightings().Saw(self(t), n)
				if part == 0 {
					f.seenNoError(t, n)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			f.flush(t)
		}
	})
	wg.Go(func() {
		for _, n := range nodes[:30] {
			if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: n.Certname, UID: n.UID}, 0, false); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	f.flush(t)
	for i, n := range nodes {
		if f.stored(t, n.Certname) != (i >= 30) {
			t.Errorf("%s: stored: %v", n.Certname, i < 30)
		}
	}
}

func (f *fixture) seenNoError(t *testing.T, n node.Node) {
	if _, err := f.Get(self(t), n.Certname, n.UID); err != nil && !errors.Is(err, node.ErrNodeNotFound) {
		t.Error(err)
	}
}

// Many nodes are stored by several commits, so that other writers get between them.
func TestFlushInBatches(t *testing.T) {
	f := newFixture(t)
	const many = 2500
	f.registerAndSee(t, many)
	var sizes []int
	f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
		sizes = append(sizes, len(b.Puts))
		return f.engine.Engine.Commit(ctx, b)
	})
	f.flush(t)
	size := f.store.Fit(1000, 1)
	want := slices.Repeat([]int{size}, many/size)
	if rest := many % size; rest > 0 {
		want = append(want, rest)
	}
	if !slices.Equal(sizes, want) {
		t.Errorf("batches of %v, want %v", sizes, want)
	}
	f.flush(t) // there is nothing to store
	if len(sizes) != len(want) {
		t.Errorf("%d commits more", len(sizes)-len(want))
	}
}

func TestNotSeenFor(t *testing.T) {
	f := newFixture(t)
	const day = 24 * time.Hour
	for _, name := range []node.Certname{"lost1.test", "lost2.test", "fine.test"} {
		f.enroll(t, name)
		f.look(t, name)
	}
	f.enroll(t, "never.test")
	f.flush(t)
	f.clock.advance(40 * day)
	f.look(t, "fine.test")
	f.enroll(t, "new.test")
	f.clock.advance(day)
	list := func(d time.Duration, limit int) (names []node.Certname) {
		for after, pages := "", 0; pages < 10; pages++ {
			page, err := f.List(self(t), registry.NodeQuery{NotSeenFor: d}, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range page.Items {
				names = append(names, n.Certname)
			}
			if after = page.Next; after == "" {
				return names
			}
		}
		t.Fatal("the list does not end")
		return nil
	}
	for _, limit := range []int{1, 2, 100} {
		for d, want := range map[time.Duration][]node.Certname{
			30 * day:          {"lost1.test", "lost2.test", "never.test"},
			day:               {"fine.test", "lost1.test", "lost2.test", "never.test", "new.test"},
			day + time.Second: {"lost1.test", "lost2.test", "never.test"},
			42 * day:          nil,
			0:                 {"fine.test", "lost1.test", "lost2.test", "never.test", "new.test"},
		} {
			if got := list(d, limit); !slices.Equal(got, want) {
				t.Errorf("%v, %d a page: got %v, want %v", d, limit, got, want)
			}
		}
	}
}

// Counting costs no memory for a node that is known, and no claim means no wait.
func TestSawAllocatesNothing(t *testing.T) {
	ctx := t.Context()
	f := newFixture(t)
	n := f.enroll(t, "web1.test")
	f.Sightings().Saw(ctx, n)
	if got := testing.AllocsPerRun(100, func() { f.Sightings().Saw(ctx, n) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

// BenchmarkSaw counts look-ups of 50,000 nodes from all cores.
func BenchmarkSaw(b *testing.B) {
	names := make([]node.Node, 50_000)
	for i := range names {
		names[i] = node.Node{Certname: node.Certname(fmt.Sprintf("n%05d.example.com", i)), UID: "u", Revision: 1}
	}
	s := registry.NewSightings(nil, nil, time.Now, nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i += 7919 {
			s.Saw(b.Context(), names[i%len(names)])
		}
	})
}
