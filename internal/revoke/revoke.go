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
)

// Authority revokes; see ca.Authority.
type Authority interface {
	Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error)
}

// Store keeps the orders; see store.Store.
type Store interface {
	Pending(ctx context.Context, limit int) ([]node.Revocation, error)
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
// the authority fails it tries again after a pause that grows to five minutes.
func (q *Queue) Run(ctx context.Context) {
	defer close(q.stopped)
	backoff := minBackoff
	for ctx.Err() == nil {
		more, err := q.step(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			pause := backoff/2 + rand.N(backoff)
			q.log.WithError(err).WithField("retry_in", pause.Round(time.Millisecond).String()).Error("revocations are waiting")
			q.sleep(ctx, pause)
			backoff = min(2*backoff, maxBackoff)
		case more:
			backoff = minBackoff
		default:
			backoff = minBackoff
			select {
			case <-q.wake:
			case <-ctx.Done():
			}
		}
	}
}

func (q *Queue) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// step carries out one batch and says whether there may be more. Where the
// authority refuses a batch for another reason than that it can't act now, each order in it
// is tried alone, so that one bad name does not block the others.
func (q *Queue) step(ctx context.Context) (more bool, err error) {
	batch, err := q.store.Pending(ctx, maxBatch)
	if err != nil || len(batch) == 0 {
		return false, err
	}
	err = q.carryOut(ctx, batch)
	if err == nil || len(batch) == 1 || errors.Is(err, node.ErrUnavailable) {
		return err == nil, err
	}
	var failed []error
	for _, r := range batch {
		if err := q.carryOut(ctx, []node.Revocation{r}); err != nil {
			failed = append(failed, fmt.Errorf("revoking %s of %q: %w", r.Serial, r.Certname, err))
		}
	}
	return len(failed) < len(batch), errors.Join(failed...)
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
