package registry_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// The store can't write when the first catalog is asked for.
func TestClaimCantBeStored(t *testing.T) {
	full := func(context.Context, store.Batch) (int64, error) {
		return 0, fmt.Errorf("%w: no space left", node.ErrUnavailable)
	}
	f := newLaunching(t)
	n := f.launch(t, "web1.test", time.Minute)
	f.engine.onCommit(full)
	at := f.look(t, "web1.test")
	f.after(t, 10*time.Minute)
	f.lives(t, n, true, false)
	f.engine.onCommit(nil)
	f.after(t, time.Minute)
	f.lives(t, n, true, true)
	f.seen(t, "web1.test", at)

	flushed := f.launch(t, "web2.test", time.Minute) // the record is stored, the claim is not
	f.engine.onCommit(full)
	f.look(t, "web2.test")
	f.engine.onCommit(nil)
	f.flush(t)
	f.after(t, 10*time.Minute)
	f.lives(t, flushed, true, true)

	lost := f.launch(t, "web3.test", time.Minute) // killed before the disk was mended
	f.engine.onCommit(full)
	f.look(t, "web3.test")
	f.engine.onCommit(nil)
	f.began = f.clock.Now()
	f.restart()
	f.after(t, grace-time.Minute)
	f.lives(t, lost, true, false)
	f.look(t, "web3.test")
	f.after(t, time.Hour)
	f.lives(t, lost, true, true)
}

// A store that hangs holds up the answer a moment only, and the claim is made in the end.
func TestClaimTakesLong(t *testing.T) {
	f := newLaunching(t)
	n := f.launch(t, "web1.test", time.Minute)
	mend := make(chan struct{})
	f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
		<-mend
		return f.engine.Engine.Commit(ctx, b)
	})
	f.look(t, "web1.test") // or the test does not end
	f.lives(t, n, true, false)
	close(mend)
	f.look(t, "web1.test") // waits for the same claim
	f.lives(t, n, true, true)
}

// The termination can't be stored: it is tried again.
func TestLaunchEndsLater(t *testing.T) {
	f := newLaunching(t)
	n := f.launch(t, "web1.test", time.Minute)
	f.engine.onCommit(func(context.Context, store.Batch) (int64, error) { return 0, node.ErrUnavailable })
	f.after(t, 5*time.Minute)
	f.lives(t, n, true, false)
	f.engine.onCommit(nil)
	f.after(t, time.Minute)
	f.lives(t, n, false, false)
}

// A look-up, the caller's terminate and the deadline at once: each node has
// one end, and one revocation if it is its end.
func TestDeadlineAtOnceWithOthers(t *testing.T) {
	f := newLaunching(t)
	var nodes []node.Node
	for i := range 40 {
		nodes = append(nodes, f.launch(t, node.Certname(fmt.Sprintf("n%d.test", i)), time.Minute))
	}
	f.clock.advance(61 * time.Second)
	var wg sync.WaitGroup
	wg.Go(func() { f.check(t) })
	wg.Go(func() { f.relabel(t, nodes) })
	wg.Go(func() {
		for i := len(nodes) - 1; i >= 0; i-- {
			f.Sightings().Saw(self(t), nodes[i])
		}
	})
	wg.Go(func() {
		for i := 0; i < len(nodes); i += 2 {
			if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: nodes[i].Certname, UID: nodes[i].UID}, 0, false); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	for i, n := range nodes {
		now, err := f.Get(self(t), n.Certname, n.UID)
		if err != nil {
			t.Fatal(err)
		}
		revs, err := f.store.RevocationsOf(self(t), n.Certname, n.UID)
		if err != nil {
			t.Fatal(err)
		}
		gone := now.State == node.Terminated
		if gone != (len(revs) == 1) || len(revs) > 1 {
			t.Errorf("%s is %s, with %d revocations", n.Certname, now.State, len(revs))
		}
		if claimed := !now.ClaimedAt.IsZero(); !gone && !claimed || claimed && now.TerminatedFor != "" {
			t.Errorf("%s is %s, claimed: %v, terminated for %q", n.Certname, now.State, claimed, now.TerminatedFor)
		}
		if i%2 == 0 && !gone {
			t.Errorf("%s lives, although the caller terminated it", n.Certname)
		}
	}
	if f.open(t) != 0 {
		t.Errorf("%d deadlines are open", f.open(t))
	}
}

// relabel changes nodes meanwhile.
func (f *launching) relabel(t *testing.T, nodes []node.Node) {
	for _, n := range nodes {
		_, err := f.Update(self(t), n.Certname, registry.Expect{}, func(n *node.Node) error { n.Labels = map[string]string{"a": "b"}; return nil }, false)
		if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
			t.Error(err)
		}
	}
}

// A look-up of an earlier life that comes late does not claim its successor.
func TestClaimOfAnEarlierLife(t *testing.T) {
	f := newLaunching(t)
	first := f.launch(t, "web1.test", time.Minute)
	f.terminate(t, "web1.test", first.UID, 0)
	second := f.launch(t, "web1.test", time.Minute)
	f.Sightings().Saw(self(t), first)
	f.lives(t, second, true, false)
}
