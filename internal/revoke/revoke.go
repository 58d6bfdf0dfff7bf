// Package revoke makes revocations certain. An order to revoke is durable in
// the store before anything is done to the authority, and stays until the receipt
// is: it outlives a killed daemon and an authority that is down for days.
//
//	ordered     the order is committed, with the change that asked for it
//	revoked     the authority has the serial on its published CRL
//	receipted   the receipt is committed; the order is no longer open
//
// A crash between two of these states leaves the order open. The next run sends it to the authority again, which
// adds no second entry for a serial that its CRL lists.
//
// If the authority refuses an order, the order's record gets the reason and the time of the next try. An admin
// may have the order tried at once (Retry), or close it without carrying it out (Drop). The authority may have
// carried out an order that is still open in the store: its answer may be lost, or the daemon killed. So a drop
// never runs while Run carries out orders, and asks the authority first.
package revoke

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Authority is the part of ca.Authority that the queue needs.
type Authority interface {
	Traits() ca.Traits
	Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error)
	Listed(ctx context.Context, serial node.Serial) (crlNumber string, err error)
}

// Store is the part of store.Store that the queue needs.
type Store interface {
	Pending(ctx context.Context, after string, limit int) ([]node.Revocation, error)
	Revocation(ctx context.Context, id string) (node.Revocation, error)
	Certificate(ctx context.Context, serial node.Serial) (node.Certificate, error)
	Node(ctx context.Context, name node.Certname) (node.Node, error)
	Commit(ctx context.Context, c *store.Change) (int64, error)
	Settle(ctx context.Context, err error) (int64, error)
	Fit(want, operations int) int
}

// Queue accepts orders and carries them out in Run. Its methods may be called concurrently.
type Queue struct {
	store     Store
	authority Authority
	outcomes  outcomes
	log       logrus.FieldLogger
	now       func() time.Time // for records; pauses use time.Now, so that a test may freeze now

	turn    chan struct{} // capacity 1: a lock for closing orders, held by Run for a page or by a drop
	wake    chan struct{} // capacity 1: wakes Run
	stopped chan struct{} // closed when Run has ended

	mu   sync.Mutex
	done chan struct{} // closed and replaced when an order is closed
	down *node.Failure // why the authority can't revoke at all; nil if the last try succeeded, or before the first

	took time.Duration // by the authority's last Revoke; only Run uses it
}

// New returns a Queue.
func New(s Store, a Authority, now func() time.Time, log logrus.FieldLogger) *Queue {
	q := &Queue{
		store: s, authority: a, log: log, now: now,
		turn: make(chan struct{}, 1), wake: make(chan struct{}, 1), stopped: make(chan struct{}), done: make(chan struct{}),
	}
	q.outcomes = outcomes{store: s, log: log, now: now, closed: q.wakeWaiters}
	return q
}

// Order adds the order to revoke a certificate to a change. After the commit of the change, call Kick.
func (q *Queue) Order(c *store.Change, order node.Revocation) node.Revocation {
	order.ID = uuid.Must(uuid.NewV7()).String()
	order.CreatedAt = q.now().UTC()
	c.PutRevocation(order)
	return order
}

// Kick wakes Run after a commit of orders.
func (q *Queue) Kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Down returns why the authority can't revoke at present; nil if no failure is known.
func (q *Queue) Down() *node.Failure {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.down
}

// Wait waits until none of the revocations is open, or until ctx is done or Run has ended. It returns the current
// records.
func (q *Queue) Wait(ctx context.Context, revs []node.Revocation) ([]node.Revocation, error) {
	for {
		q.mu.Lock()
		done := q.done
		q.mu.Unlock()
		open := false
		for i, r := range revs {
			if !r.Open() {
				continue
			}
			now, err := q.store.Revocation(context.WithoutCancel(ctx), r.ID)
			if errors.Is(err, node.ErrRevocationNotFound) {
				continue // removed by housekeeping, long after it was closed
			}
			if err != nil {
				return revs, err
			}
			revs[i] = now
			open = open || now.Open()
		}
		if !open {
			return revs, nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return revs, nil
		case <-q.stopped:
			return revs, nil
		}
	}
}

// wakeWaiters wakes all callers of Wait.
func (q *Queue) wakeWaiters() {
	q.mu.Lock()
	defer q.mu.Unlock()
	close(q.done)
	q.done = make(chan struct{})
}

// Retry makes an open order due at once. Errors: node.ErrRevocationNotFound, ErrRevocationClosed.
func (q *Queue) Retry(ctx context.Context, id string) (node.Revocation, error) {
	r, err := q.change(ctx, id, node.ActionRetry, func(_ *store.Change, r *node.Revocation) error {
		if r.Failure != nil {
			f := *r.Failure
			f.RetryAt = time.Now().UTC()
			r.Failure = &f
		}
		return nil
	})
	q.Kick()
	return r, err
}

// open returns an order that is open, else node.ErrRevocationClosed.
func (q *Queue) open(ctx context.Context, id string) (node.Revocation, error) {
	r, err := q.store.Revocation(ctx, id)
	switch {
	case err != nil:
	case r.Receipt != nil:
		err = fmt.Errorf("%w: %s, of %q, is carried out", node.ErrRevocationClosed, id, r.Certname)
	case r.Impossible != nil:
		err = fmt.Errorf("%w: %s, of %q, is impossible: %s", node.ErrRevocationClosed, id, r.Certname, r.Impossible.Reason)
	case r.Drop != nil:
		err = fmt.Errorf("%w: %s, of %q, was dropped", node.ErrRevocationClosed, id, r.Certname)
	}
	return r, err
}

// change applies change to an open order and commits it, again if another writer was first.
func (q *Queue) change(ctx context.Context, id string, action node.Action, change func(*store.Change, *node.Revocation) error) (node.Revocation, error) {
	for {
		r, err := q.open(ctx, id)
		if err != nil {
			return r, err
		}
		c := store.NewChange()
		if err := change(c, &r); err != nil {
			return r, err
		}
		line := audit.OfRevocation(ctx, q.now(), action, r)
		if r.Drop != nil {
			line.Comment = r.Drop.Comment
		}
		c.Audit(line)
		c.PutRevocation(r)
		rev, err := q.store.Commit(ctx, c)
		if errors.Is(err, node.ErrStale) && ctx.Err() == nil {
			continue
		}
		r.Revision = rev
		return r, err
	}
}
