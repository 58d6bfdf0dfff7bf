package revoke

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
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
		refused, err = q.outcomes.closeImpossible(ctx, refused)
	}
	if err == nil {
		err = q.outcomes.postpone(ctx, refused)
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
	if failed := q.outcomes.commitReceipts(ctx, batch, done); failed != nil {
		return failed
	}
	return err
}
