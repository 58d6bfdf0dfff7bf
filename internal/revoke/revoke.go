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
	Node(ctx context.Context, name node.Certname) (node.Node, error)
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
	due, err := q.spare(ctx, due, refused)
	if err != nil || len(due) == 0 {
		return err
	}
	open, told, err := q.carryOut(ctx, due)
	left := map[string]bool{}
	for _, r := range open {
		left[r.ID] = true
	}
	for _, r := range due {
		if !left[r.ID] {
			delete(refused, r.ID)
		}
	}
	if err == nil || errors.Is(err, node.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	for _, r := range open {
		err := err
		if !told && len(due) > 1 {
			_, _, err = q.carryOut(ctx, []node.Revocation{r})
		}
		switch {
		case err == nil:
			delete(refused, r.ID)
		case errors.Is(err, node.ErrUnavailable) || ctx.Err() != nil:
			return err
		default:
			q.putOff(r, err, refused)
		}
	}
	return nil
}

func (q *Queue) putOff(r node.Revocation, err error, refused map[string]*delay) {
	if refused[r.ID] == nil {
		refused[r.ID] = &delay{}
	}
	refused[r.ID].grow()
	q.log.WithError(err).WithFields(logrus.Fields{"certname": r.Certname, "serial": r.Serial, "retry_in": refused[r.ID].left().Round(time.Millisecond).String()}).
		Error("a certificate can't be revoked")
}

// spare puts off the orders whose name has a successor, where the authority
// revokes by name: carried out, they would kill it.
func (q *Queue) spare(ctx context.Context, due []node.Revocation, refused map[string]*delay) ([]node.Revocation, error) {
	if !ca.RevokesByName(q.authority) {
		return due, nil
	}
	var safe []node.Revocation
	for _, r := range due {
		n, err := q.store.Node(ctx, r.Certname)
		if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
			return nil, err
		}
		if err == nil && (n.Serial != "" && n.Serial != r.Serial || n.State == node.Issuing && n.UID != r.UID) {
			q.putOff(r, fmt.Errorf("the CA revokes by name, and %q is registration %s with serial %q now", r.Certname, n.UID, n.Serial), refused)
			continue
		}
		safe = append(safe, r)
	}
	return safe, nil
}

// carryOut hands a batch to the authority and commits the receipts. Beside an
// error it returns the orders that have none, and whether the authority told
// which these are.
func (q *Queue) carryOut(ctx context.Context, batch []node.Revocation) (open []node.Revocation, told bool, err error) {
	targets := make([]ca.Target, len(batch))
	for i, r := range batch {
		targets[i] = ca.Target{Serial: r.Serial, Certname: r.Certname}
	}
	receipts, err := q.authority.Revoke(ctx, targets)
	if err == nil && len(receipts) != len(batch) {
		err = fmt.Errorf("the authority gave %d receipts for %d revocations", len(receipts), len(batch))
	}
	if len(receipts) != len(batch) {
		return batch, false, err
	}
	var done []node.Revocation
	for i, r := range batch {
		if receipts[i].Serial == "" {
			open = append(open, r)
			continue
		}
		r.Receipt = &receipts[i]
		done = append(done, r)
	}
	if failed := q.commit(ctx, done); failed != nil {
		return batch, false, failed
	}
	return open, true, err
}

// commit keeps the receipts.
func (q *Queue) commit(ctx context.Context, done []node.Revocation) error {
	if len(done) == 0 {
		return nil
	}
	c := store.NewChange()
	for _, r := range done {
		c.PutRevocation(r)
		cert, err := q.store.Certificate(ctx, r.Serial)
		if errors.Is(err, node.ErrCertificateNotFound) {
			continue // issued, but lost in a crash before it was stored
		}
		if err != nil {
			return err
		}
		cert.Receipt = r.Receipt
		c.PutCertificate(cert)
	}
	if _, err := q.store.Commit(ctx, c); err != nil {
		return fmt.Errorf("keeping the receipts of %d revocations: %w", len(done), err)
	}
	q.mu.Lock()
	close(q.done)
	q.done = make(chan struct{})
	q.mu.Unlock()
	for _, r := range done {
		q.log.WithFields(logrus.Fields{"certname": r.Certname, "uid": r.UID, "serial": r.Serial, "crl_number": r.Receipt.CRLNumber}).Info("certificate revoked")
	}
	return nil
}
