package registry_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// A registration whose certificate is ordered to be revoked anew while it is being forgotten
// is remembered until that is done, and then forgotten with both orders.
func TestForcedRevocationWhileForgetting(t *testing.T) {
	for when, meanwhile := range map[string]func(e *faultyEngine, order func()){
		"between the reads": func(e *faultyEngine, order func()) {
			e.onGet(func(ctx context.Context, key string) (store.Record, error) {
				if strings.HasPrefix(key, "issue/") {
					e.get.Store(nil)
					order()
				}
				return e.Engine.Get(ctx, key)
			})
		},
		"before the commit": func(e *faultyEngine, order func()) {
			e.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
				e.onCommit(nil)
				order()
				return e.Engine.Commit(ctx, b)
			})
		},
	} {
		t.Run(when, func(t *testing.T) {
			f := newFixture(t)
			p := f.provision(t, "web1.test", "")
			cert, err := f.store.Certificate(self(t), p.Node.Newest())
			if err != nil {
				t.Fatal(err)
			}
			f.terminate(t, "web1.test", "", 0)
			ctx, cancel := context.WithCancel(self(t))
			ended := make(chan struct{})
			go func() { defer close(ended); f.queue.Run(ctx) }()
			defer func() { cancel(); <-ended }()
			f.drain(t)
			f.authority.failRevoke(errLost)

			f.clock.advance(cert.NotAfter.Sub(f.clock.Now()) + 24*time.Hour) // nothing but its order keeps it
			var again []node.Revocation
			meanwhile(f.engine, func() {
				if again, err = f.Revoke(self(t), registry.RevokeRequest{Serial: p.Node.Newest(), Force: true}, 0, false); err != nil {
					t.Error(err)
				}
			})
			if err := f.Sweep(self(t)); err != nil {
				t.Fatal(err)
			}
			if len(again) != 1 {
				t.Fatal("nothing was ordered meanwhile")
			}
			if _, err := f.store.Tombstone(self(t), "web1.test", p.Node.UID); err != nil {
				t.Errorf("forgotten, with an open order: %v", err)
			}
			if cert, err = f.store.Certificate(self(t), p.Node.Newest()); err != nil || cert.Revocation != again[0].ID {
				t.Errorf("got %+v, %v, want the order %s", cert, err, again[0].ID)
			}

			f.authority.heal()
			f.drain(t)
			if err := f.Sweep(self(t)); err != nil {
				t.Fatal(err)
			}
			if _, err := f.store.Tombstone(self(t), "web1.test", p.Node.UID); !errors.Is(err, node.ErrNodeNotFound) {
				t.Errorf("remembered: %v", err)
			}
			if revs, err := f.store.AllRevocationsOf(self(t), "web1.test"); err != nil || len(revs) > 0 {
				t.Errorf("left: %+v, %v", revs, err)
			}
		})
	}
}
