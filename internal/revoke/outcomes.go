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

// outcomes stores what became of orders: a receipt, a refusal that is tried again, or that the
// authority can never carry the order out.
type outcomes struct {
	store  Store
	log    logrus.FieldLogger
	now    func() time.Time
	closed func() // called after each commit that closes orders
}

// commitReceipts commits receipts, given by the id of their order, in as many commits as the engine's bounds need.
func (o *outcomes) commitReceipts(ctx context.Context, batch []node.Revocation, receipts map[string]*node.Receipt) error {
	batch = slices.DeleteFunc(slices.Clone(batch), func(r node.Revocation) bool { return receipts[r.ID] == nil })
	for part := range slices.Chunk(batch, o.store.Fit(maxBatch, 2)) {
		if err := o.commitSomeReceipts(ctx, part, receipts); err != nil {
			return err
		}
	}
	return nil
}

func (o *outcomes) commitSomeReceipts(ctx context.Context, batch []node.Revocation, receipts map[string]*node.Receipt) error {
	err := o.rewrite(ctx, batch, func(c *store.Change, r node.Revocation) error {
		r.Receipt, r.Failure = receipts[r.ID], nil
		line := audit.OfRevocation(ctx, o.now(), node.ActionReceipt, r)
		line.Comment = "CRL " + r.Receipt.CRLNumber
		c.Audit(line)
		c.PutRevocation(r)
		return o.changeCertificate(ctx, c, r, func(cert *node.Certificate) { cert.Receipt = r.Receipt })
	})
	if err != nil {
		return fmt.Errorf("store the receipts of %d revocations: %w", len(batch), err)
	}
	o.closed()
	for _, r := range batch {
		o.log.WithFields(logrus.Fields{"certname": r.Certname, "uid": r.UID, "serial": r.Serial, "crl_number": receipts[r.ID].CRLNumber}).Info("certificate revoked")
	}
	return nil
}

// changeCertificate adds the outcome of an order to its certificate, if the store has the certificate. It has none if
// a crash came before the certificate was stored, or if espm did not issue it.
func (o *outcomes) changeCertificate(ctx context.Context, c *store.Change, order node.Revocation, change func(*node.Certificate)) error {
	cert, err := o.store.Certificate(ctx, order.Serial)
	if errors.Is(err, node.ErrCertificateNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	cert.Revocation = order.ID
	change(&cert)
	c.PutCertificate(cert)
	return nil
}

// postpone commits why orders were refused, and when they are tried again.
func (o *outcomes) postpone(ctx context.Context, refused []refusal) error {
	for part := range slices.Chunk(refused, o.store.Fit(maxBatch, 1)) {
		if err := o.postponePart(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func (o *outcomes) postponePart(ctx context.Context, refused []refusal) error {
	orders, why := make([]node.Revocation, len(refused)), map[string]error{}
	for i, r := range refused {
		orders[i], why[r.order.ID] = r.order, r.why
	}
	err := o.rewrite(ctx, orders, func(c *store.Change, r node.Revocation) error {
		c.Unaudited() // only the first refusal gets an audit line: an order may be refused for days
		if r.Failure == nil {
			line := audit.OfRevocation(ctx, o.now(), node.ActionRefusal, r)
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
		o.log.WithError(r.why).WithFields(logrus.Fields{"id": r.order.ID, "certname": r.order.Certname, "serial": r.order.Serial}).
			Error("a certificate can't be revoked yet")
	}
	return nil
}

// rewrite changes orders in one commit. If another writer was first, it reads the orders again and repeats the
// commit. If the outcome of a commit is unknown, rewrite waits until it is known: nothing else can be written before.
func (o *outcomes) rewrite(ctx context.Context, orders []node.Revocation, change func(*store.Change, node.Revocation) error) error {
	for {
		c := store.NewChange()
		for _, r := range orders {
			if err := change(c, r); err != nil {
				return err
			}
		}
		_, err := o.store.Commit(ctx, c)
		for errors.Is(err, store.ErrUnknownOutcome) && ctx.Err() == nil {
			o.log.WithError(err).WithField("orders", len(orders)).Error("the store does not answer while the outcomes of revocations are written; espm waits")
			_, err = o.store.Settle(ctx, err)
		}
		if !errors.Is(err, node.ErrStale) || ctx.Err() != nil {
			return err
		}
		for i, r := range orders {
			if orders[i], err = o.store.Revocation(ctx, r.ID); err != nil {
				return err
			}
		}
	}
}

// closeImpossible closes the orders that the authority can never carry out. It returns the other refused orders. A
// closed order does not delay the next certificate of its name.
func (o *outcomes) closeImpossible(ctx context.Context, refused []refusal) ([]refusal, error) {
	var impossible, others []refusal
	for _, r := range refused {
		if errors.Is(r.why, ca.ErrImpossible) {
			impossible = append(impossible, r)
		} else {
			others = append(others, r)
		}
	}
	for part := range slices.Chunk(impossible, o.store.Fit(maxBatch, 2)) {
		if err := o.closePart(ctx, part); err != nil {
			return others, err
		}
	}
	return others, nil
}

func (o *outcomes) closePart(ctx context.Context, refused []refusal) error {
	orders, why := make([]node.Revocation, len(refused)), map[string]error{}
	for i, r := range refused {
		orders[i], why[r.order.ID] = r.order, r.why
	}
	err := o.rewrite(ctx, orders, func(c *store.Change, r node.Revocation) error {
		r.Failure, r.Impossible = nil, &node.Impossible{Reason: why[r.ID].Error(), FoundAt: o.now().UTC()}
		line := audit.OfRevocation(ctx, o.now(), node.ActionImpossible, r)
		line.Outcome, line.Comment = "refused", r.Impossible.Reason
		c.Audit(line)
		c.PutRevocation(r)
		return o.changeCertificate(ctx, c, r, func(cert *node.Certificate) { cert.Impossible = true })
	})
	if err != nil {
		return fmt.Errorf("close %d revocations that the CA can't carry out: %w", len(refused), err)
	}
	o.closed()
	for _, r := range refused {
		o.log.WithError(r.why).WithFields(logrus.Fields{"id": r.order.ID, "certname": r.order.Certname, "serial": r.order.Serial}).
			Error("the CA can't revoke a certificate, which stays valid until it expires")
	}
	return nil
}
