// Package revoke makes revocations certain. An order to revoke is durable in
// the store before anything is done to the authority, and stays until the receipt
// is: it outlives a killed daemon and an authority that is down for days.
//
//	ordered     the order is committed, with the change that asked for it
//	revoked     the authority has the serial on its published CRL
//	receipted   the receipt is committed; the order is no longer pending
//
// A crash between any two leaves the order pending. The next run hands it to the
// authority again, which adds no second entry for a serial that it lists.
package revoke

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const (
	maxBatch   = 1000 // revocations handed to the authority at once
	minBackoff = time.Second
	maxBackoff = 5 * time.Minute
	recheck    = 30 * time.Second // the longest that the queue is not looked at
)

// Authority revokes; see ca.Authority.
type Authority interface {
	Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error)
}

// Store keeps the orders; see store.Store.
type Store interface {
	Pending(ctx context.Context, after string, limit int) ([]node.Revocation, error)
	Revocation(ctx context.Context, id string) (node.Revocation, bool, error)
	Certificate(ctx context.Context, serial node.Serial) (node.Certificate, error)
	Commit(ctx context.Context, c *store.Change) (int64, error)
}

// Queue takes orders and carries them out in Run. Its methods may be called at once.
type Queue struct {
	store     Store
	authority Authority
	log       logrus.FieldLogger
	now       func() time.Time

	wake    chan struct{} // holds one: there is something new to do
	stopped chan struct{} // closed when Run has ended

	mu   sync.Mutex
	done chan struct{} // closed and replaced when receipts were committed
}

// New returns a Queue.
func New(s Store, a Authority, now func() time.Time, log logrus.FieldLogger) *Queue {
	return &Queue{store: s, authority: a, log: log, now: now, wake: make(chan struct{}, 1), stopped: make(chan struct{}), done: make(chan struct{})}
}

// Order adds the order to revoke a certificate to a change; it stands once
// the change is committed. Call Kick then.
func (q *Queue) Order(c *store.Change, serial node.Serial, name node.Certname, uid node.UID) node.Revocation {
	r := node.Revocation{
		ID:        uuid.Must(uuid.NewV7()).String(),
		Serial:    serial,
		Certname:  name,
		UID:       uid,
		CreatedAt: q.now().UTC(),
	}
	c.PutRevocation(r)
	return r
}

// Kick tells Run that orders were committed.
func (q *Queue) Kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Wait waits until each of the revocations has its receipt, or ctx is done, or
// Run has ended, and returns them as they stand then.
func (q *Queue) Wait(ctx context.Context, revs []node.Revocation) ([]node.Revocation, error) {
	for {
		q.mu.Lock()
		done := q.done
		q.mu.Unlock()
		pending := false
		for i, r := range revs {
			if r.Receipt != nil {
				continue
			}
			now, ok, err := q.store.Revocation(context.WithoutCancel(ctx), r.ID)
			if err != nil {
				return revs, err
			}
			if ok {
				revs[i] = now
				pending = pending || now.Receipt == nil
			}
		}
		if !pending {
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

// Run carries out what is ordered, until ctx is done; it is called once. While
// the authority can't act, and for each order that it refuses, it tries again
// after a pause that grows to five minutes.
func (q *Queue) Run(ctx context.Context) {
	defer close(q.stopped)
	var authority delay
	refused := map[string]*delay{} // by the order's id
	for ctx.Err() == nil {
		wait := authority.left()
		if wait <= 0 {
			var err error
			if wait, err = q.step(ctx, refused); err == nil {
				authority = delay{}
			} else if ctx.Err() == nil {
				authority.grow()
				q.log.WithError(err).WithField("retry_in", authority.left().Round(time.Millisecond).String()).Error("revocations are waiting")
				continue
			}
		}
		q.sleep(ctx, wait, &authority)
	}
}

// sleep waits, at most until the next look at the queue is due. Kick ends it,
// but asks an authority that can't act once a second at most.
func (q *Queue) sleep(ctx context.Context, wait time.Duration, authority *delay) {
	t := time.NewTimer(min(wait, recheck))
	defer t.Stop()
	select {
	case <-t.C:
	case <-q.wake:
		authority.hurry()
	case <-ctx.Done():
	}
}

// delay is when to try again what failed.
type delay struct {
	pause time.Duration
	last  time.Time // of the last failure
	until time.Time
}

// grow notes a failure: the next try is after a pause twice as long, with jitter.
func (d *delay) grow() {
	d.pause = min(max(2*d.pause, minBackoff), maxBackoff)
	d.last = time.Now()
	d.until = d.last.Add(d.pause/2 + rand.N(d.pause/2))
}

// hurry has the next try come soon after the last.
func (d *delay) hurry() {
	if soon := d.last.Add(minBackoff); soon.Before(d.until) {
		d.until = soon
	}
}

func (d *delay) left() time.Duration { return time.Until(d.until) }

// step carries out all orders that are due, and returns how long it is until
// the next one is. An error says that the authority, or the store, can't act.
// Where the authority refuses a batch for another reason, each order in it is
// tried alone, so that one bad name does not block the others.
func (q *Queue) step(ctx context.Context, refused map[string]*delay) (time.Duration, error) {
	next := recheck
	after := ""
	for {
		page, err := q.store.Pending(ctx, after, maxBatch)
		if err != nil || len(page) == 0 {
			return next, err
		}
		after = page[len(page)-1].ID
		var due []node.Revocation
		for _, r := range page {
			if d := refused[r.ID]; d == nil || d.left() <= 0 {
				due = append(due, r)
			} else {
				next = min(next, d.left())
			}
		}
		if len(due) == 0 {
			continue
		}
		if err := q.carryOutDue(ctx, due, refused); err != nil {
			return next, err
		}
		for _, r := range due {
			if d := refused[r.ID]; d != nil {
				next = min(next, d.left())
			}
		}
	}
}

func (q *Queue) carryOutDue(ctx context.Context, due []node.Revocation, refused map[string]*delay) error {
	err := q.carryOut(ctx, due)
	if errors.Is(err, node.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	if err == nil {
		for _, r := range due {
			delete(refused, r.ID)
		}
		return nil
	}
	for i, r := range due {
		if len(due) > 1 {
			err = q.carryOut(ctx, due[i:i+1])
		}
		switch {
		case err == nil:
			delete(refused, r.ID)
		case errors.Is(err, node.ErrUnavailable) || ctx.Err() != nil:
			return err
		default:
			if refused[r.ID] == nil {
				refused[r.ID] = &delay{}
			}
			refused[r.ID].grow()
			q.log.WithError(err).WithFields(logrus.Fields{"certname": r.Certname, "serial": r.Serial, "retry_in": refused[r.ID].left().Round(time.Millisecond).String()}).
				Error("a certificate can't be revoked")
		}
	}
	return nil
}

func (q *Queue) carryOut(ctx context.Context, batch []node.Revocation) error {
	targets := make([]ca.Target, len(batch))
	for i, r := range batch {
		targets[i] = ca.Target{Serial: r.Serial, Certname: r.Certname}
	}
	receipts, err := q.authority.Revoke(ctx, targets)
	if err != nil {
		return err
	}
	c := store.NewChange()
	for i := range batch {
		batch[i].Receipt = &receipts[i]
		c.PutRevocation(batch[i])
		cert, err := q.store.Certificate(ctx, batch[i].Serial)
		if errors.Is(err, node.ErrCertificateNotFound) {
			continue // issued, but lost in a crash before it was stored
		}
		if err != nil {
			return err
		}
		cert.Receipt = &receipts[i]
		c.PutCertificate(cert)
	}
	if _, err := q.store.Commit(ctx, c); err != nil {
		return fmt.Errorf("keeping the receipts of %d revocations: %w", len(batch), err)
	}
	q.mu.Lock()
	close(q.done)
	q.done = make(chan struct{})
	q.mu.Unlock()
	for _, r := range batch {
		q.log.WithFields(logrus.Fields{"certname": r.Certname, "uid": r.UID, "serial": r.Serial, "crl_number": r.Receipt.CRLNumber}).Info("certificate revoked")
	}
	return nil
}
