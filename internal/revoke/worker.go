package revoke

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const (
	maxBatch = 1000 // the most revocations in one call of the authority
	recheck  = 30 * time.Second
	// maxGather bounds how long an order waits for others, to share a CRL with them.
	maxGather = 250 * time.Millisecond
)

// Run carries out orders until ctx is done. It must be called once only. If the authority does not answer or
// refuses an order, Run tries again after a pause that grows to five minutes.
//
// Orders that come during a call of the authority make the next batch. That batch also waits for half the time
// that the last call took: the more a CRL costs, the fewer are made.
func (q *Queue) Run(ctx context.Context) {
	defer close(q.stopped)
	ctx = node.AsSelf(ctx)
	for wait := time.Duration(0); ctx.Err() == nil; {
		if pause(ctx, wait, q.wake) {
			q.hurry()
			pause(ctx, min(q.took/2, maxGather), nil)
		}
		if wait = untilRetry(q.Down(), time.Now()); wait <= 0 && ctx.Err() == nil {
			wait = q.round(ctx)
		}
	}
}

// pause waits until the time is over, wake has a value or ctx is done. It reports whether wake had a value.
func pause(ctx context.Context, wait time.Duration, wake <-chan struct{}) (woken bool) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
		return true
	case <-ctx.Done():
	}
	return false
}

// hurry shortens the pause of an authority that failed to one second after the last try. More orders do not
// shorten it further.
func (q *Queue) hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down == nil {
		return
	}
	if soon := q.down.FailedAt.Add(minBackoff); soon.Before(q.down.RetryAt) {
		f := *q.down
		f.RetryAt = soon
		q.down = &f
	}
}

// round carries out the due orders, and returns the wait until the next round.
func (q *Queue) round(ctx context.Context) time.Duration {
	wait, err := q.step(ctx)
	if ctx.Err() != nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err == nil {
		q.down = nil
		return wait
	}
	q.down = fail(q.down, err, time.Now())
	wait = untilRetry(q.down, time.Now())
	q.log.WithError(err).WithField("retry_in", wait.Round(time.Millisecond).String()).Error("revocations can't be carried out yet")
	return wait
}

// step carries out all due orders, and returns the wait until the next one is due. It returns an error if the
// authority or the store fails.
func (q *Queue) step(ctx context.Context) (time.Duration, error) {
	next, after := recheck, ""
	for {
		last, wait, err := q.page(ctx, after)
		next = min(next, wait)
		if err != nil || last == "" {
			return next, err
		}
		after = last
	}
}

// page carries out the due orders of one page. It returns the last order's id, empty if no page follows, and the
// wait until the next order is due. It holds the turn from the read of the orders until their outcome is stored:
// an order that was dropped meanwhile could still be carried out by the CA.
func (q *Queue) page(ctx context.Context, after string) (last string, next time.Duration, err error) {
	next = recheck
	if !q.beginTurn(ctx) {
		return "", next, ctx.Err()
	}
	defer q.endTurn()
	page, err := q.store.Pending(ctx, after, maxBatch)
	if err != nil || len(page) == 0 {
		return "", next, err
	}
	if len(page) == maxBatch { // a shorter page is the last: newer orders have woken Run, and come in its next round
		last = page[len(page)-1].ID
	}
	var due []node.Revocation
	for _, r := range page {
		if wait := untilRetry(r.Failure, time.Now()); wait > 0 {
			next = min(next, wait)
		} else {
			due = append(due, r)
		}
	}
	if len(due) == 0 {
		return last, next, nil
	}
	refused, err := q.carryOutDue(ctx, due)
	if err == nil {
		refused, err = q.closeImpossible(ctx, refused)
	}
	if err == nil {
		err = q.postpone(ctx, refused)
	}
	if len(refused) > 0 {
		next = min(next, minBackoff)
	}
	return last, next, err
}

// refusal is an order that the authority refused, with its error.
type refusal struct {
	order node.Revocation
	why   error
}

// carryOutDue carries out a batch and returns the refused orders. If the authority refuses the whole batch, each
// order is tried alone, so that one bad name does not block the others.
func (q *Queue) carryOutDue(ctx context.Context, due []node.Revocation) ([]refusal, error) {
	due, unlisted := refuseUnlistable(due)
	due, refused, err := q.refuseSucceeded(ctx, due)
	refused = append(refused, unlisted...)
	if err != nil || len(due) == 0 {
		return refused, err
	}
	err = q.carryOut(ctx, due)
	if err == nil || errors.Is(err, node.ErrUnavailable) || ctx.Err() != nil {
		return refused, err
	}
	refusals, perOrder := errors.AsType[*ca.RefusedError](err)
	for i, r := range due {
		why := err
		switch {
		case perOrder:
			why = refusals.Targets[i]
		case len(due) > 1:
			why = q.carryOut(ctx, []node.Revocation{r})
		}
		if !perOrder && errors.Is(why, node.ErrUnavailable) || ctx.Err() != nil {
			return refused, why
		}
		if why != nil {
			refused = append(refused, refusal{r, why})
		}
	}
	return refused, nil
}

// refuseUnlistable refuses the orders whose serial no CRL can list. An espm that imported such certificates made them.
func refuseUnlistable(due []node.Revocation) (possible []node.Revocation, refused []refusal) {
	for _, r := range due {
		if why := ca.CheckRevocable(r.Serial); why != nil {
			refused = append(refused, refusal{r, why})
		} else {
			possible = append(possible, r)
		}
	}
	return possible, refused
}

// refuseSucceeded refuses the orders whose name has a newer certificate, if the authority revokes by name: it
// would revoke the newer certificate.
func (q *Queue) refuseSucceeded(ctx context.Context, due []node.Revocation) (safe []node.Revocation, refused []refusal, err error) {
	if !q.authority.Traits().RevokesByName {
		return due, nil, nil
	}
	for _, r := range due {
		n, err := q.store.Node(ctx, r.Certname)
		if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
			return nil, nil, err
		}
		another := slices.ContainsFunc(n.Serials, func(s node.Serial) bool { return s != r.Serial })
		if err == nil && (another || n.State == node.Issuing && n.UID != r.UID) {
			refused = append(refused, refusal{r, fmt.Errorf("the CA revokes by name, and %q is registration %s with the certificates %q now", r.Certname, n.UID, n.Serials)})
			continue
		}
		safe = append(safe, r)
	}
	return safe, refused, nil
}

// carryOut has the authority revoke a batch, and commits the receipts. After an error some orders of the batch may
// be carried out.
func (q *Queue) carryOut(ctx context.Context, batch []node.Revocation) error {
	targets := make([]ca.Target, len(batch))
	for i, r := range batch {
		targets[i] = ca.Target{Serial: r.Serial, Certname: r.Certname, Reason: r.Reason}
	}
	begin := time.Now()
	receipts, err := q.authority.Revoke(ctx, targets)
	q.took = time.Since(begin)
	if err == nil && len(receipts) != len(batch) {
		err = fmt.Errorf("the authority gave %d receipts for %d revocations", len(receipts), len(batch))
	}
	if len(receipts) != len(batch) {
		return err
	}
	done := map[string]*node.Receipt{}
	for i, r := range batch {
		if receipts[i].Serial != "" {
			done[r.ID] = &receipts[i]
		}
	}
	if failed := q.commitReceipts(ctx, batch, done); failed != nil {
		return failed
	}
	return err
}

// commitReceipts commits receipts, given by the id of their order, in as many commits as the engine's bounds need.
func (q *Queue) commitReceipts(ctx context.Context, batch []node.Revocation, receipts map[string]*node.Receipt) error {
	batch = slices.DeleteFunc(slices.Clone(batch), func(r node.Revocation) bool { return receipts[r.ID] == nil })
	for part := range slices.Chunk(batch, q.store.Fit(maxBatch, 2)) {
		if err := q.commitSomeReceipts(ctx, part, receipts); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) commitSomeReceipts(ctx context.Context, batch []node.Revocation, receipts map[string]*node.Receipt) error {
	err := q.rewrite(ctx, batch, func(c *store.Change, r node.Revocation) error {
		r.Receipt, r.Failure = receipts[r.ID], nil
		line := audit.OfRevocation(ctx, q.now(), node.ActionReceipt, r)
		line.Comment = "CRL " + r.Receipt.CRLNumber
		c.Audit(line)
		c.PutRevocation(r)
		cert, err := q.store.Certificate(ctx, r.Serial)
		if errors.Is(err, node.ErrCertificateNotFound) {
			return nil // a crash came before the certificate was stored, or espm did not issue it
		}
		if err != nil {
			return err
		}
		cert.Revocation, cert.Receipt = r.ID, r.Receipt
		c.PutCertificate(cert)
		return nil
	})
	if err != nil {
		return fmt.Errorf("store the receipts of %d revocations: %w", len(batch), err)
	}
	q.wakeWaiters()
	for _, r := range batch {
		q.log.WithFields(logrus.Fields{"certname": r.Certname, "uid": r.UID, "serial": r.Serial, "crl_number": receipts[r.ID].CRLNumber}).Info("certificate revoked")
	}
	return nil
}

// postpone commits why orders were refused, and when they are tried again.
func (q *Queue) postpone(ctx context.Context, refused []refusal) error {
	for part := range slices.Chunk(refused, q.store.Fit(maxBatch, 1)) {
		if err := q.postponePart(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) postponePart(ctx context.Context, refused []refusal) error {
	orders, why := make([]node.Revocation, len(refused)), map[string]error{}
	for i, r := range refused {
		orders[i], why[r.order.ID] = r.order, r.why
	}
	err := q.rewrite(ctx, orders, func(c *store.Change, r node.Revocation) error {
		c.Unaudited() // only the first refusal gets an audit line: an order may be refused for days
		if r.Failure == nil {
			line := audit.OfRevocation(ctx, q.now(), node.ActionRefusal, r)
			line.Outcome = "refused"
			c.Audit(line)
		}
		r.Failure = fail(r.Failure, why[r.ID], time.Now())
		c.PutRevocation(r)
		return nil
	})
	if err != nil {
		return fmt.Errorf("postpone %d revocations: %w", len(refused), err)
	}
	for _, r := range refused {
		q.log.WithError(r.why).WithFields(logrus.Fields{"id": r.order.ID, "certname": r.order.Certname, "serial": r.order.Serial}).
			Error("a certificate can't be revoked yet")
	}
	return nil
}

// rewrite changes orders in one commit. If another writer was first, it reads the orders again and repeats the
// commit. If the outcome of a commit is unknown, rewrite waits until it is known: nothing else can be written before.
func (q *Queue) rewrite(ctx context.Context, orders []node.Revocation, change func(*store.Change, node.Revocation) error) error {
	for {
		c := store.NewChange()
		for _, r := range orders {
			if err := change(c, r); err != nil {
				return err
			}
		}
		_, err := q.store.Commit(ctx, c)
		for errors.Is(err, store.ErrUnknownOutcome) && ctx.Err() == nil {
			q.log.WithError(err).WithField("orders", len(orders)).Error("the store does not answer while the outcomes of revocations are written; espm waits")
			_, err = q.store.Settle(ctx, err)
		}
		if !errors.Is(err, node.ErrStale) || ctx.Err() != nil {
			return err
		}
		for i, r := range orders {
			if orders[i], err = q.store.Revocation(ctx, r.ID); err != nil {
				return err
			}
		}
	}
}
