package revoke_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/store"
)

// One that is dropped while the authority is at work on it is carried out: it has
// a receipt, so has its certificate, and the node that had it back is without it again.
func TestDropComesTooLate(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	a := authority(func([]ca.Target) error {
		begun <- struct{}{}
		<-release
		return nil
	})
	s := newStore(t)
	q := newQueue(s, a)
	cert := node.Certificate{Serial: "0BAD", Certname: "web1.test", UID: "uid", NotAfter: time.Now().Add(time.Hour)}
	c := store.NewChange()
	c.Unaudited()
	rev := q.Order(c, node.Revocation{Serial: cert.Serial, Certname: cert.Certname, UID: cert.UID})
	cert.Revocation = rev.ID
	c.PutCertificate(cert)
	c.PutNode(nil, node.Node{Certname: cert.Certname, UID: cert.UID, State: node.Registered})
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	run(t, q)
	<-begun
	if dropped, err := q.Drop(t.Context(), rev.ID, "a moment late"); err != nil || dropped.Drop == nil {
		t.Errorf("got %+v, %v", dropped, err)
	}
	if n, err := s.Node(t.Context(), cert.Certname); err != nil || n.Serial != cert.Serial {
		t.Errorf("the node has no certificate: %+v, %v", n, err)
	}
	kept := s.WatchRevocations(t.Context(), revision(t, s))
	close(release)
	for ev, err := range kept {
		if err != nil || ev.Revocation.Receipt == nil || ev.Revocation.Drop != nil {
			t.Errorf("got %+v, %v", ev.Revocation, err)
		}
		break
	}
	if got, err := s.Certificate(t.Context(), cert.Serial); err != nil || got.Receipt == nil || got.Revocation != rev.ID {
		t.Errorf("its certificate: %+v, %v", got, err)
	}
	if n, err := s.Node(t.Context(), cert.Certname); err != nil || n.Serial != "" || n.State != node.Registered {
		t.Errorf("the node holds a revoked certificate: %+v, %v", n, err)
	}
}

func revision(t *testing.T, s *store.Store) int64 {
	t.Helper()
	rev, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// More orders than a batch holds are all carried out, without another kick.
func TestMoreThanABatch(t *testing.T) {
	var batches []int
	a := authority(func(targets []ca.Target) error {
		batches = append(batches, len(targets))
		return nil
	})
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		c := store.NewChange()
		c.Unaudited()
		for i := range 1001 {
			q.Order(c, node.Revocation{Serial: node.Serial(fmt.Sprintf("%04X", 0xA000+i)), Certname: "n.test", UID: "uid"})
		}
		if _, err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		q.Kick()
		time.Sleep(time.Second)
		synctest.Wait()
		if left := open(t, s, ""); len(left) != 0 || !slices.Equal(batches, []int{1000, 1}) {
			t.Errorf("batches of %v, %d are left", batches, len(left))
		}
	})
}

// A next try that is further off than any pause was written by a clock that was ahead: it
// is made at once. One within the pause is waited for.
func TestClockThatWasSetBack(t *testing.T) {
	var tried atomic.Int64
	a := authority(func(targets []ca.Target) error { tried.Add(int64(len(targets))); return nil })
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		c := store.NewChange()
		c.Unaudited()
		for i, in := range []time.Duration{24 * time.Hour, 4 * time.Minute} {
			f := &node.Failure{Error: "refused", Attempts: 1, FailedAt: time.Now(), RetryAt: time.Now().Add(in)}
			q.Order(c, node.Revocation{Serial: node.Serial(fmt.Sprintf("%04X", i+1)), Certname: "n.test", UID: "uid", Failure: f})
		}
		if _, err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		q.Kick()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := tried.Load(); n != 1 {
			t.Errorf("%d were tried in a minute, want the one", n)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := tried.Load(); n != 2 {
			t.Errorf("%d were tried in six minutes", n)
		}
	})
}
