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

// More orders than a batch holds are all carried out, without another kick.
func TestMoreThanABatch(t *testing.T) {
	var batches []int
	a := authority(func(targets []ca.Target) error {
		batches = append(batches, len(targets))
		return nil
	})
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		synctest.Wait()
		orderMany(t, s, q, 1001)
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
