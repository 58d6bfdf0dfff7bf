package revoke_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// authority does what the function says.
type authority func(targets []ca.Target) error

func (a authority) Revoke(_ context.Context, targets []ca.Target) ([]node.Receipt, error) {
	if err := a(targets); err != nil {
		return nil, err
	}
	receipts := make([]node.Receipt, len(targets))
	for i, t := range targets {
		receipts[i] = node.Receipt{Serial: t.Serial, CRLNumber: "1"}
	}
	return receipts, nil
}

func newStore(t *testing.T) *store.Store {
	t.Helper()
	engine, err := bolt.Open(filepath.Join(t.TempDir(), "espm.db"), bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	s, err := store.New(t.Context(), engine)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newQueue(s revoke.Store, a authority) *revoke.Queue {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return revoke.New(s, a, time.Now, log)
}

func order(t *testing.T, s *store.Store, q *revoke.Queue, name node.Certname) node.Revocation {
	t.Helper()
	c := store.NewChange()
	r := q.Order(c, node.Serial(fmt.Sprintf("%04X", len(name))), name, "uid")
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return r
}

// Orders are carried out although nobody kicked the queue for them: what
// committed them may have died in between.
func TestOrdersOfAnEarlierRun(t *testing.T) {
	s := newStore(t)
	q := newQueue(s, func([]ca.Target) error { return nil })
	var revs []node.Revocation
	for i := range 5 {
		revs = append(revs, order(t, s, q, node.Certname(fmt.Sprintf("n%d.test", i))))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go q.Run(ctx)
	limit, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	got, err := q.Wait(limit, revs)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range got {
		if r.Receipt == nil {
			t.Errorf("%s is pending", r.Certname)
		}
	}
	if left, err := s.Pending(t.Context(), "", 10); err != nil || len(left) != 0 {
		t.Errorf("pending: %v, %v", left, err)
	}
}

// Waiting ends with the queue, which will do no more.
func TestWaitEndsWithTheQueue(t *testing.T) {
	s := newStore(t)
	q := newQueue(s, func([]ca.Target) error { return node.ErrUnavailable })
	revs := []node.Revocation{order(t, s, q, "n.test")}
	ctx, cancel := context.WithCancel(t.Context())
	go q.Run(ctx)
	cancel()
	if got, err := q.Wait(t.Context(), revs); err != nil || got[0].Receipt != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

// memory is a revoke.Store without a disk, for tests in which time is made.
type memory struct {
	mu   sync.Mutex
	revs []node.Revocation
}

func (m *memory) Pending(_ context.Context, after string, _ int) ([]node.Revocation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []node.Revocation
	for _, r := range m.revs {
		if r.Receipt == nil && r.ID > after {
			out = append(out, r)
		}
	}
	return out, nil
}

func (m *memory) Revocation(context.Context, string) (node.Revocation, bool, error) {
	return node.Revocation{}, false, nil
}

func (m *memory) Certificate(context.Context, node.Serial) (node.Certificate, error) {
	return node.Certificate{}, node.ErrCertificateNotFound
}

func (m *memory) Node(context.Context, node.Certname) (node.Node, error) {
	return node.Node{}, node.ErrNodeNotFound
}

// Commit does nothing: the authority of these tests has noted what is done.
func (m *memory) Commit(context.Context, *store.Change) (int64, error) { return 1, nil }

func (m *memory) add(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revs = append(m.revs, node.Revocation{ID: id, Serial: node.Serial(id), Certname: node.Certname(id)})
}

func (m *memory) done(targets []ca.Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range targets {
		for i := range m.revs {
			if m.revs[i].Serial == t.Serial {
				m.revs[i].Receipt = &node.Receipt{}
			}
		}
	}
}

// One that is refused for ever is tried ever less often, up to five minutes
// apart, and the others never wait for it.
func TestRefusedOrderDoesNotDelayOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		var tries []time.Time
		q := newQueue(m, func(targets []ca.Target) error {
			for _, target := range targets {
				if target.Certname == "0bad" {
					if len(targets) == 1 {
						tries = append(tries, time.Now())
					}
					return errors.New("no such certificate")
				}
			}
			m.done(targets)
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		m.add("0bad")
		go q.Run(ctx)
		for i := range 20 {
			id := fmt.Sprintf("1good%02d", i)
			m.add(id)
			q.Kick()
			synctest.Wait()
			if left, _ := m.Pending(ctx, "0bad", 10); len(left) != 0 {
				t.Fatalf("after kick %d: %v wait for the bad one", i, left)
			}
			time.Sleep(time.Minute)
		}
		cancel()
		synctest.Wait()
		if len(tries) < 6 || len(tries) > 20 {
			t.Errorf("tried %d times in 20 minutes", len(tries))
		}
		for i := 1; i < len(tries); i++ {
			if gap := tries[i].Sub(tries[i-1]); gap > 5*time.Minute+time.Second {
				t.Errorf("%v between two tries", gap)
			}
		}
	})
}

// While the authority is down it is asked after growing pauses, at most once a
// second however many orders come in; when it is back all are carried out.
func TestAuthorityThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		var down atomic.Bool
		down.Store(true)
		var asked atomic.Int64
		q := newQueue(m, func(targets []ca.Target) error {
			asked.Add(1)
			if down.Load() {
				return fmt.Errorf("%w: connection refused", node.ErrUnavailable)
			}
			m.done(targets)
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		go q.Run(ctx)
		for i := range 600 { // a minute of ten orders a second
			m.add(fmt.Sprintf("%03d", i))
			q.Kick()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if n := asked.Load(); n < 10 || n > 61 {
			t.Errorf("asked %d times in a minute", n)
		}
		down.Store(false)
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if left, _ := m.Pending(ctx, "", 1000); len(left) != 0 {
			t.Errorf("%d are left", len(left))
		}
		cancel()
		synctest.Wait()
	})
}
