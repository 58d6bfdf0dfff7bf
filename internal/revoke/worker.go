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
	maxBatch = 1000 // revocations handed to the authority at once
	recheck  = 30 * time.Second
	// maxGather is the longest that an order waits for others to come.
	maxGather = 250 * time.Millisecond
)

// Run carries out what is ordered, until ctx is done; it is called once. While
// the authority can't act, and for each order that it refuses, it tries again
// after a pause that grows to five minutes.
//
// What is ordered while the authority is at work makes the next batch. That
// waits, besides, for half the time that the last one took, so that fewer CRLs
// are made where one costs more.
func (q *Queue) Run(ctx context.Context) {
	defer close(q.stopped)
	ctx = node.AsSelf(ctx)
	for wait := time.Duration(0); ctx.Err() == nil; {
		if pause(ctx, wait, q.wake) {
			q.hurry()
			pause(ctx, min(q.took/2, maxGather), nil)
		}
		if wait = left(q.Down(), time.Now()); wait <= 0 && ctx.Err() == nil {
			wait = q.round(ctx)
		}
	}
}

// pause waits, until it is woken or ctx is done.
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

// hurry has an authority that could not act asked again soon: a second
// after the last time, however many orders come in.
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

// round carries out what is due and says how long it is until the next round.
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
	wait = left(q.down, time.Now())
	q.log.WithError(err).WithField("retry_in", wait.Round(time.Millisecond).String()).Error("revocations are waiting")
	return wait
}

// step carries out all orders that are due, and returns how long it is until
// the next one is. An error says that the authority, or the store, can't act.
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

// page carries out what is due of a page of orders. It returns the last of them, "" where no
// more follow, and how long it is until the next is due. It has the turn
// from the read of the orders until their outcome is stored. No order can be dropped meanwhile, as the CA might carry it out all the same.
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
	if len(page) == maxBatch { // what is ordered meanwhile has woken Run, and waits for others there
		last = page[len(page)-1].ID
	}
	var due []node.Revocation
	for _, r := range page {
		if wait := left(r.Failure, time.Now()); wait > 0 {
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
		err = q.putOff(ctx, refused)
	}
	if len(refused) > 0 {
		next = min(next, minBackoff)
	}
	return last, next, err
}

// refusal is an order that the authority will not carry out, and why.
type refusal struct {
	order node.Revocation
	why   error
}

// carryOutDue has a batch carried out and returns what is refused of it. Where the
// authority refuses a batch as a whole, each order in it is tried alone, so that
// one bad name does not block the others.
func (q *Queue) carryOutDue(ctx context.Context, due []node.Revocation) ([]refusal, error) {
	due, refused, err := q.refuseSucceeded(ctx, due)
	if err != nil || len(due) == 0 {
		return refused, err
	}
	err = q.carryOut(ctx, due)
	if err == nil || errors.Is(err, node.ErrUnavailable) || ctx.Err() != nil {
		return refused, err
	}
	each, told := errors.AsType[*ca.RefusedError](err)
	for i, r := range due {
		why := err
		switch {
		case told:
			why = each.Targets[i]
		case len(due) > 1:
			why = q.carryOut(ctx, []node.Revocation{r})
		}
		if !told && errors.Is(why, node.ErrUnavailable) || ctx.Err() != nil {
			return refused, why
		}
		if why != nil {
			refused = append(refused, refusal{r, why})
		}
	}
	return refused, nil
}

// refuseSucceeded refuses the orders whose name has a successor, where the authority
// revokes by name: carried out, they would kill it.
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

// carryOut hands a batch to the authority and commits the receipts. Beside an
// error some of it may have been carried out.
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
	if failed := q.keep(ctx, batch, done); failed != nil {
		return failed
	}
	return err
}

// keep commits receipts, by the id of their orders, as many at a time as fit a commit.
func (q *Queue) keep(ctx context.Context, batch []node.Revocation, receipts map[string]*node.Receipt) error {
	batch = slices.DeleteFunc(slices.Clone(batch), func(r node.Revocation) bool { return receipts[r.ID] == nil })
	for part := range slices.Chunk(batch, q.store.Fit(maxBatch, 2)) {
		if err := q.keepPart(ctx, part, receipts); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) keepPart(ctx context.Context, batch []node.Revocation, receipts map[string]*node.Receipt) error {
	err := q.rewrite(ctx, batch, func(c *store.Change, r node.Revocation) error {
		r.Receipt, r.Failure = receipts[r.ID], nil
		line := audit.OfRevocation(ctx, q.now(), node.ActionReceipt, r)
		line.Comment = "CRL " + r.Receipt.CRLNumber
		c.Audit(line)
		c.PutRevocation(r)
		cert, err := q.store.Certificate(ctx, r.Serial)
		if errors.Is(err, node.ErrCertificateNotFound) {
			return nil // issued, but lost in a crash before it was stored, or not by espm
		}
		if err != nil {
			return err
		}
		cert.Revocation, cert.Receipt = r.ID, r.Receipt
		c.PutCertificate(cert)
		return nil
	})
	if err != nil {
		return fmt.Errorf("keeping the receipts of %d revocations: %w", len(batch), err)
	}
	q.ended()
	for _, r := range batch {
		q.log.WithFields(logrus.Fields{"certname": r.Certname, "uid": r.UID, "serial": r.Serial, "crl_number": receipts[r.ID].CRLNumber}).Info("certificate revoked")
	}
	return nil
}

// putOff keeps why orders were refused, and when they are tried again.
func (q *Queue) putOff(ctx context.Context, refused []refusal) error {
	for part := range slices.Chunk(refused, q.store.Fit(maxBatch, 1)) {
		if err := q.putOffPart(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) putOffPart(ctx context.Context, refused []refusal) error {
	orders, why := make([]node.Revocation, len(refused)), map[string]error{}
	for i, r := range refused {
		orders[i], why[r.order.ID] = r.order, r.why
	}
	err := q.rewrite(ctx, orders, func(c *store.Change, r node.Revocation) error {
		c.Unaudited() // all tries but the first: one may fail for days
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
		return fmt.Errorf("putting off %d revocations: %w", len(refused), err)
	}
	for _, r := range refused {
		q.log.WithError(r.why).WithFields(logrus.Fields{"id": r.order.ID, "certname": r.order.Certname, "serial": r.order.Serial}).
			Error("a certificate can't be revoked yet")
	}
	return nil
}

// rewrite changes orders in one commit. It reads them again if
// somebody else was faster. A commit in doubt is waited for: nothing can be kept before it is settled.
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
			q.log.WithError(err).WithField("orders", len(orders)).Error("what became of revocations is being written; the store does not answer")
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
