package revoke_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/enginetest"
)

// fakeCA is an authority that does what its functions say.
type fakeCA struct {
	authority
	listed func(ctx context.Context, serial node.Serial) (string, error)
}

func (c fakeCA) Listed(ctx context.Context, serial node.Serial) (string, error) {
	return c.listed(ctx, serial)
}

// ordered has web1.test's certificate revoked: the node stays, without it.
func ordered(t *testing.T, s *store.Store, q *revoke.Queue) node.Revocation {
	t.Helper()
	cert := node.Certificate{Serial: "0BAD", Certname: "web1.test", UID: "uid", NotAfter: time.Now().Add(24 * time.Hour)}
	c := store.NewChange()
	c.Unaudited()
	rev := q.Order(c, node.Revocation{Serial: cert.Serial, Certname: cert.Certname, UID: cert.UID})
	cert.Revocation = rev.ID
	c.PutCertificate(cert)
	c.PutNode(nil, node.Node{Certname: cert.Certname, UID: cert.UID, State: node.Registered})
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return rev
}

// holds says what became of web1.test's certificate: the node has it again, or it is revoked, or it is to be.
func holds(t *testing.T, s *store.Store, rev node.Revocation, want string) {
	t.Helper()
	now, err := s.Revocation(t.Context(), rev.ID)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := s.Certificate(t.Context(), rev.Serial)
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Node(t.Context(), rev.Certname)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("open %v, dropped %v, receipt %v; ordered %v, revoked %v; %v %q",
		now.Open(), now.Drop != nil, now.Receipt != nil, cert.Revocation != "", cert.Receipt != nil, n.State, n.Newest())
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

const (
	isBack    = `open false, dropped true, receipt false; ordered false, revoked false; provisioned "0BAD"`
	isPending = `open true, dropped false, receipt false; ordered true, revoked false; registered ""`
	isRevoked = `open false, dropped false, receipt true; ordered true, revoked true; registered ""`
)

// An order is dropped only where the authority has not carried it out, whatever became of earlier tries.
func TestDropAsksTheAuthority(t *testing.T) {
	down := fmt.Errorf("%w: no answer", node.ErrUnavailable)
	for what, c := range map[string]struct {
		try   error  // what comes of the first
		acts  bool   // it was carried out nevertheless
		asked error  // what the authority answers when asked
		drop  error  // what the drop answers
		left  string // after the drop
	}{
		"down":             {down, false, nil, nil, isBack},
		"answer lost":      {down, true, nil, node.ErrRevocationClosed, isPending},
		"refused":          {errors.New("no such certificate"), false, nil, nil, isBack},
		"refused too late": {errors.New("its file can't be removed"), true, nil, node.ErrRevocationClosed, isPending},
		"can't be asked":   {down, false, down, node.ErrUnavailable, isPending},
		"acted, and can't": {down, true, down, node.ErrUnavailable, isPending},
	} {
		t.Run(what, func(t *testing.T) {
			var heals, crl atomic.Bool
			a := fakeCA{func([]ca.Target) error {
				if heals.Load() {
					crl.Store(true)
					return nil
				}
				crl.Store(c.acts)
				return c.try
			}, func(_ context.Context, serial node.Serial) (string, error) {
				if c.asked != nil || !crl.Load() {
					return "", c.asked
				}
				return "7", nil
			}}
			bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
				rev := ordered(t, s, q)
				q.Kick()
				synctest.Wait()
				_, err := q.Drop(node.AsSelf(t.Context()), rev.ID, "it was found again")
				if !errors.Is(err, c.drop) || err != nil && !strings.Contains(err.Error(), "web1.test") {
					t.Errorf("got %v", err)
				}
				holds(t, s, rev, c.left)
				heals.Store(true)
				time.Sleep(6 * time.Minute)
				synctest.Wait()
				if c.drop == nil {
					holds(t, s, rev, isBack)
				} else {
					holds(t, s, rev, isRevoked)
				}
			})
		})
	}
}

// A drop waits for what the authority is at work on, and is too late then.
func TestDropComesTooLate(t *testing.T) {
	a := authority(func([]ca.Target) error { time.Sleep(3 * time.Second); return nil })
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		rev := ordered(t, s, q)
		q.Kick()
		time.Sleep(time.Second)
		if _, err := q.Drop(node.AsSelf(t.Context()), rev.ID, "a moment late"); !errors.Is(err, node.ErrRevocationClosed) {
			t.Errorf("got %v", err)
		}
		holds(t, s, rev, isRevoked)
	})
}

// It does not wait for ever, and nothing is dropped later.
func TestDropGivesUp(t *testing.T) {
	a := authority(func([]ca.Target) error { time.Sleep(time.Hour); return nil })
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		rev := ordered(t, s, q)
		q.Kick()
		synctest.Wait()
		short, cancel := context.WithTimeout(node.AsSelf(t.Context()), time.Second)
		defer cancel()
		for _, ctx := range []context.Context{short, node.AsSelf(t.Context())} {
			begin := time.Now()
			_, err := q.Drop(ctx, rev.ID, "it was found again")
			busy, ok := errors.AsType[*node.BusyError](err)
			if !ok || !strings.Contains(busy.Reason, `serial 0BAD of "web1.test"`) || time.Since(begin) > 5*time.Second {
				t.Errorf("got %v after %v", err, time.Since(begin))
			}
		}
		holds(t, s, rev, isPending)
		time.Sleep(time.Hour)
		synctest.Wait()
		holds(t, s, rev, isRevoked)
	})
}

// Between two pages of orders a drop that waits has its turn.
func TestDropComesBetweenTwoPages(t *testing.T) {
	var late, tried atomic.Int64
	a := authority(func(targets []ca.Target) error {
		tried.Add(int64(len(targets)))
		for _, target := range targets {
			if target.Certname == "late.test" {
				late.Add(1)
			}
		}
		time.Sleep(3 * time.Second)
		return nil
	})
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		synctest.Wait()
		orderMany(t, s, q, 1000)
		c := store.NewChange()
		c.Unaudited()
		rev := q.Order(c, node.Revocation{Serial: "0BAD", Certname: "late.test", UID: "uid"})
		if _, err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		q.Kick()
		time.Sleep(time.Second)
		if dropped, err := q.Drop(node.AsSelf(t.Context()), rev.ID, "it was found again"); err != nil || dropped.Drop == nil {
			t.Errorf("got %+v, %v", dropped, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if late.Load() != 0 || tried.Load() != 1000 {
			t.Errorf("%d tried, the dropped one %d times", tried.Load(), late.Load())
		}
	})
}

// While an order is being dropped it is not carried out.
func TestNothingIsCarriedOutDuringADrop(t *testing.T) {
	var tries atomic.Int64
	a := fakeCA{func([]ca.Target) error { tries.Add(1); return nil }, func(ctx context.Context, _ node.Serial) (string, error) {
		time.Sleep(3 * time.Second)
		return "", ctx.Err()
	}}
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		synctest.Wait()
		rev := ordered(t, s, q)
		time.AfterFunc(time.Second, q.Kick)
		if _, err := q.Drop(node.AsSelf(t.Context()), rev.ID, "it was found again"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if tries.Load() != 0 {
			t.Errorf("tried %d times", tries.Load())
		}
		holds(t, s, rev, isBack)
	})
}

// hangingDisk is an engine whose disk can hang: the next commit has an unknown outcome until goOn, and all later
// commits wait for it.
type hangingDisk struct {
	store.Engine
	hang chan struct{} // capacity 1
	goOn chan struct{}
	turn sync.Mutex
}

func (d *hangingDisk) Commit(ctx context.Context, b store.Batch) (int64, error) {
	d.turn.Lock()
	select {
	case <-d.hang:
	default:
		defer d.turn.Unlock()
		return d.Engine.Commit(ctx, b)
	}
	var revision int64
	var err error
	done := make(chan struct{})
	go func() {
		defer d.turn.Unlock()
		defer close(done)
		<-d.goOn
		revision, err = d.Engine.Commit(context.Background(), b)
	}()
	doubt := &store.DoubtError{Cause: errors.New("the disk hangs")}
	doubt.Settle = func(ctx context.Context) (int64, error) {
		select {
		case <-done:
			return revision, err
		case <-ctx.Done():
			return 0, doubt
		}
	}
	return 0, doubt
}

// While the outcome of a drop is unknown, the order reads as open. It is not carried out: the drop may hold.
func TestDropInDoubt(t *testing.T) {
	disk := &hangingDisk{Engine: enginetest.Open(t, nil), hang: make(chan struct{}, 1), goOn: make(chan struct{})}
	s, err := store.New(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	tried := make(chan node.Serial, 10)
	q := newQueue(s, authority(func(targets []ca.Target) error {
		for _, target := range targets {
			tried <- target.Serial
		}
		return nil
	}))
	dropped, other := ordered(t, s, q), order(t, s, q, "web2.test")
	s.Bound = 200 * time.Millisecond
	disk.hang <- struct{}{}
	if _, err := q.Drop(node.AsSelf(t.Context()), dropped.ID, "it was found again"); !errors.Is(err, store.ErrUnknownOutcome) {
		t.Fatalf("got %v, want an unknown outcome", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		q.Run(ctx)
	}()
	select {
	case serial := <-tried:
		t.Errorf("%s is revoked while the drop of %s is in doubt", serial, dropped.Serial)
	case <-time.After(300 * time.Millisecond):
	}
	close(disk.goOn)
	got, err := q.Wait(ctx, []node.Revocation{dropped, other})
	cancel()
	<-ended
	if err != nil || got[1].Receipt == nil {
		t.Errorf("the other order: %+v, %v", got[1], err)
	}
	holds(t, s, dropped, isBack)
}
