package revoke_test

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	"github.com/espm-project/espm/internal/store/enginetest"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

// authority does what the function says.
type authority func(targets []ca.Target) error

func (a authority) Revoke(_ context.Context, targets []ca.Target) ([]node.Receipt, error) {
	err := a(targets)
	each, told := errors.AsType[*ca.RefusedError](err)
	if err != nil && !told {
		return nil, err
	}
	receipts := make([]node.Receipt, len(targets))
	for i, t := range targets {
		if !told || each.Targets[i] == nil {
			receipts[i] = node.Receipt{Serial: t.Serial, CRLNumber: "1"}
		}
	}
	return receipts, err
}

func (a authority) Traits() ca.Traits { return ca.Traits{} }

// Listed says that nothing is.
func (a authority) Listed(context.Context, node.Serial) (string, error) { return "", nil }

func newStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.New(t.Context(), enginetest.Open(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newQueue(s revoke.Store, a revoke.Authority) *revoke.Queue {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return revoke.New(s, a, time.Now, log)
}

// serials are those of the orders.
var serials atomic.Int64

func order(t *testing.T, s *store.Store, q *revoke.Queue, name node.Certname) node.Revocation {
	t.Helper()
	c := store.NewChange()
	c.Unaudited()
	r := q.Order(c, node.Revocation{Serial: node.Serial(fmt.Sprintf("%04X", serials.Add(1))), Certname: name, UID: "uid"})
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return r
}

// orderMany orders as many at a time as every engine takes in one commit.
func orderMany(t *testing.T, s *store.Store, q *revoke.Queue, n int) {
	t.Helper()
	const some = 100
	for first := 0; first < n; first += some {
		c := store.NewChange()
		c.Unaudited()
		for i := first; i < min(first+some, n); i++ {
			q.Order(c, node.Revocation{Serial: node.Serial(fmt.Sprintf("%04X", 0xA000+i)), Certname: "n.test", UID: "uid"})
		}
		if _, err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

// Orders are carried out although nobody kicked the queue for them: what
// committed them may have died in between.
func TestOrdersOfAnEarlierRun(t *testing.T) {
	s := newStore(t)
	q := newQueue(s, authority(func([]ca.Target) error { return nil }))
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
	q := newQueue(s, authority(func([]ca.Target) error { return node.ErrUnavailable }))
	revs := []node.Revocation{order(t, s, q, "n.test")}
	ctx, cancel := context.WithCancel(t.Context())
	go q.Run(ctx)
	cancel()
	if got, err := q.Wait(t.Context(), revs); err != nil || got[0].Receipt != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

// bubble runs a test in which time is made, with a store and a running queue in it.
func bubble(t *testing.T, a revoke.Authority, test func(t *testing.T, s *store.Store, q *revoke.Queue)) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		q := newQueue(s, a)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { q.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		test(t, s, q)
	})
}

func open(t *testing.T, s *store.Store, after string) []node.Revocation {
	t.Helper()
	left, err := s.Pending(t.Context(), after, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// refuse returns an authority that refuses batches with a certname in them.
func refuse(bad node.Certname, alone func()) authority {
	return func(targets []ca.Target) error {
		for _, target := range targets {
			if target.Certname == bad {
				if len(targets) == 1 {
					alone()
				}
				return errors.New("no such certificate")
			}
		}
		return nil
	}
}

// One that is refused for ever is tried ever less often, up to five minutes
// apart, and the others never wait for it.
func TestRefusedOrderDoesNotDelayOthers(t *testing.T) {
	var tries []time.Time
	a := refuse("bad.test", func() { tries = append(tries, time.Now()) })
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		bad := order(t, s, q, "bad.test")
		for i := range 20 {
			order(t, s, q, node.Certname(fmt.Sprintf("good%02d.test", i)))
			q.Kick()
			time.Sleep(time.Minute)
			synctest.Wait()
			if left := open(t, s, bad.ID); len(left) != 0 {
				t.Fatalf("after kick %d: %v wait for the bad one", i, left)
			}
		}
		if len(tries) < 6 || len(tries) > 20 {
			t.Errorf("tried %d times in 20 minutes", len(tries))
		}
		for i := 1; i < len(tries); i++ {
			if gap := tries[i].Sub(tries[i-1]); gap > 5*time.Minute+time.Second {
				t.Errorf("%v between two tries", gap)
			}
		}
		now, err := s.Revocation(t.Context(), bad.ID)
		if err != nil || now.Failure == nil || now.Failure.Attempts != len(tries) || now.Failure.Error != "no such certificate" {
			t.Errorf("the order says %+v, %v after %d tries", now.Failure, err, len(tries))
		}
	})
}

// What is refused is not tried at once after a restart, but soon after an
// admin asked for it, and not any more after it was dropped.
func TestRefusedOrderIsRetriedAndDropped(t *testing.T) {
	var tries atomic.Int64
	a := refuse("bad.test", func() { tries.Add(1) })
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		cert := node.Certificate{Serial: "0BAD", Certname: "bad.test", UID: "uid"}
		c := store.NewChange()
		c.Unaudited()
		rev := q.Order(c, node.Revocation{Serial: "0BAD", Certname: "bad.test", UID: "uid"})
		cert.Revocation = rev.ID
		c.PutCertificate(cert)
		if _, err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		before := tries.Load()
		if _, err := q.Retry(node.AsSelf(t.Context()), rev.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if n := tries.Load(); n != before+1 {
			t.Errorf("tried %d times after the retry, %d before", n, before)
		}

		waited := make(chan []node.Revocation, 1)
		go func() {
			revs, _ := q.Wait(t.Context(), []node.Revocation{rev})
			waited <- revs
		}()
		synctest.Wait()
		if _, err := q.Drop(node.AsSelf(t.Context()), rev.ID, "it is a test"); err != nil {
			t.Fatal(err)
		}
		if got := <-waited; got[0].Drop == nil || got[0].Drop.Comment != "it is a test" {
			t.Errorf("who waited got %+v", got)
		}
		before = tries.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := tries.Load(); n != before {
			t.Errorf("tried %d times after it was dropped", n-before)
		}
		if cert, err := s.Certificate(t.Context(), "0BAD"); err != nil || cert.Revocation != "" {
			t.Errorf("its certificate: %+v, %v", cert, err)
		}
		for what, again := range map[string]func(context.Context, string) (node.Revocation, error){
			"retry": q.Retry,
			"drop":  func(ctx context.Context, id string) (node.Revocation, error) { return q.Drop(ctx, id, "again") },
		} {
			if _, err := again(node.AsSelf(t.Context()), rev.ID); !errors.Is(err, node.ErrRevocationClosed) {
				t.Errorf("%s of a closed one: %v", what, err)
			}
			if _, err := again(node.AsSelf(t.Context()), "none"); !errors.Is(err, node.ErrRevocationNotFound) {
				t.Errorf("%s of none: %v", what, err)
			}
		}
	})
}

// An authority that tells what it refuses of a batch is not asked for the rest again.
func TestAuthorityThatTellsWhatItRefuses(t *testing.T) {
	var calls atomic.Int64
	a := authority(func(targets []ca.Target) error {
		calls.Add(1)
		e := &ca.RefusedError{Targets: make([]error, len(targets))}
		for i, target := range targets {
			if target.Certname == "bad.test" {
				e.Targets[i] = errors.New("never heard of it")
				return e
			}
		}
		return nil
	})
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		synctest.Wait() // Run has begun, and waits
		var revs []node.Revocation
		for _, name := range []node.Certname{"a.test", "bad.test", "c.test"} {
			revs = append(revs, order(t, s, q, name))
		}
		q.Kick()
		synctest.Wait()
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls", n)
		}
		left := open(t, s, "")
		if len(left) != 1 || left[0].ID != revs[1].ID || left[0].Failure == nil || left[0].Failure.Error != "never heard of it" {
			t.Errorf("left: %+v", left)
		}
	})
}

// While the authority is down it is asked after growing pauses, at most once a
// second however many orders come in; when it is back all are carried out.
func TestAuthorityThatIsDown(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	var asked atomic.Int64
	a := authority(func([]ca.Target) error {
		asked.Add(1)
		if down.Load() {
			return fmt.Errorf("%w: connection refused", node.ErrUnavailable)
		}
		return nil
	})
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		for range 600 { // a minute of ten orders a second
			order(t, s, q, "n.test")
			q.Kick()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if n := asked.Load(); n < 10 || n > 61 {
			t.Errorf("asked %d times in a minute", n)
		}
		if f := q.Down(); f == nil || f.Attempts != int(asked.Load()) {
			t.Errorf("it says %+v", f)
		}
		down.Store(false)
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if left := open(t, s, ""); len(left) != 0 {
			t.Errorf("%d are left", len(left))
		}
		if f := q.Down(); f != nil {
			t.Errorf("it is back, but the queue says %+v", f)
		}
	})
}

// Where a CRL takes long, what comes in meanwhile and shortly after is one batch.
func TestOrdersAreGathered(t *testing.T) {
	var batches []int
	a := authority(func(targets []ca.Target) error {
		batches = append(batches, len(targets))
		time.Sleep(400 * time.Millisecond)
		return nil
	})
	bubble(t, a, func(t *testing.T, s *store.Store, q *revoke.Queue) {
		for range 100 {
			order(t, s, q, "n.test")
			q.Kick()
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if left := open(t, s, ""); len(left) != 0 {
			t.Errorf("%d are left", len(left))
		}
		// Two seconds of orders, 0.4 s a CRL and 0.2 s of gathering.
		if len(batches) > 5 { // six without
			t.Errorf("batches of %v", batches)
		}
	})
}

// A receipt whose commit is in doubt is waited for: the caller gets it once the disk goes on.
func TestReceiptInDoubt(t *testing.T) {
	var disk sync.Mutex
	s, err := store.New(t.Context(), enginetest.Open(t, func(int, time.Duration, error) {
		disk.Lock()
		defer disk.Unlock()
	}))
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	q := newQueue(s, authority(func([]ca.Target) error {
		calls++
		disk.Lock()
		time.AfterFunc(time.Second, disk.Unlock)
		return nil
	}))
	r := order(t, s, q, "a.test")
	s.Bound = 300 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		q.Run(ctx)
	}()
	got, err := q.Wait(ctx, []node.Revocation{r})
	cancel()
	<-ended
	if err != nil || got[0].Receipt == nil || calls != 1 {
		t.Errorf("got %+v, %v after %d calls of the authority, want a receipt after one", got[0], err, calls)
	}
}
