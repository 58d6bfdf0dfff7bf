package store_test

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// A serial is refused from the commit of its order until its receipt, or a drop, and by the next process, too.
func TestOrdered(t *testing.T) {
	f := newFixture(t)
	has := func(what string, s *store.Store, want bool) {
		t.Helper()
		if s.Ordered.Has("0A") != want {
			t.Errorf("%s: got %v", what, !want)
		}
	}
	next := func() *store.Store {
		t.Helper()
		s, err := store.New(t.Context(), f.engine)
		check(t, err)
		check(t, s.Ordered.Read(t.Context(), s.View))
		return s
	}
	has("before", f.Store, false)
	order := node.Revocation{ID: "0190a000-0000-7000-8000-000000000001", Serial: "0A", Certname: "a.test", CreatedAt: t0}
	order.Revision = f.do(func(c *store.Change) { c.PutRevocation(order) })
	has("ordered", f.Store, true)
	has("after a restart", next(), true)

	c := store.NewChange()
	c.Unaudited()
	stale := order
	stale.Revision--
	stale.Drop = &node.Drop{Comment: "x", DroppedAt: t0}
	c.PutRevocation(stale)
	if _, err := f.Commit(t.Context(), c); err == nil {
		t.Fatal("a stale commit is applied")
	}
	has("a drop that failed", f.Store, true)

	order.Impossible = &node.Impossible{Reason: "x", FoundAt: t0}
	order.Revision = f.do(func(c *store.Change) { c.PutRevocation(order) })
	has("impossible", f.Store, true)
	has("impossible, after a restart", next(), true)

	second := node.Revocation{ID: "0190a000-0000-7000-8000-000000000002", Serial: "0A", Certname: "a.test", CreatedAt: t0}
	second.Revision = f.do(func(c *store.Change) { c.PutRevocation(second) })
	second.Receipt = &node.Receipt{Serial: "0A", CRLNumber: "7", PublishedAt: t0}
	f.do(func(c *store.Change) { c.PutRevocation(second) })
	has("receipted", f.Store, false)
	c = store.NewChange()
	c.Unaudited()
	c.PutRevocation(second) // a guard that fails
	failed := node.Revocation{ID: order.ID, Serial: "0A", Certname: "a.test", CreatedAt: t0}
	c.PutRevocation(failed)
	if _, err := f.Commit(t.Context(), c); err == nil {
		t.Fatal("a stale commit is applied")
	}
	has("an order that failed", f.Store, false)
}

// While it is unknown whether an order, or its drop, was committed, the serial is refused. The outcome counts as soon
// as the engine knows it, without a restart.
func TestOrderedInDoubt(t *testing.T) {
	f, hang, release := hangingDisk(t)
	order := node.Revocation{ID: "0190a000-0000-7000-8000-000000000001", Serial: "0A", Certname: "a.test", CreatedAt: t0}
	put := func(r node.Revocation) (int64, error) {
		c := store.NewChange()
		c.Unaudited()
		c.PutRevocation(r)
		return f.Commit(t.Context(), c)
	}
	inDoubt := func(r node.Revocation) {
		t.Helper()
		hang()
		f.Bound = 300 * time.Millisecond
		_, err := put(r)
		f.Bound = time.Minute
		if !errors.Is(err, store.ErrUnknownOutcome) {
			t.Fatalf("the disk hangs: got %v", err)
		}
		if !f.Ordered.Has("0A") {
			t.Error("a serial in doubt is not refused")
		}
		release()
		order.Revision, err = f.Settle(t.Context(), err)
		check(t, err)
	}
	inDoubt(order)
	dropped := order
	dropped.Drop = &node.Drop{Comment: "x", DroppedAt: t0}
	inDoubt(dropped)
	for end := time.Now().Add(time.Minute); f.Ordered.Has("0A"); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the drop is committed, and the serial is still refused")
		}
	}
}
