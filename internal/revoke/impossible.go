package revoke

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// closeImpossible closes the orders that the authority can never carry out. It returns the other refused orders. A
// closed order does not delay the next certificate of its name.
func (q *Queue) closeImpossible(ctx context.Context, refused []refusal) ([]refusal, error) {
	var impossible, others []refusal
	for _, r := range refused {
		if errors.Is(r.why, ca.ErrImpossible) {
			impossible = append(impossible, r)
		} else {
			others = append(others, r)
		}
	}
	for part := range slices.Chunk(impossible, q.store.Fit(maxBatch, 2)) {
		if err := q.closePart(ctx, part); err != nil {
			return others, err
		}
	}
	return others, nil
}

func (q *Queue) closePart(ctx context.Context, refused []refusal) error {
	orders, why := make([]node.Revocation, len(refused)), map[string]error{}
	for i, r := range refused {
		orders[i], why[r.order.ID] = r.order, r.why
	}
	err := q.rewrite(ctx, orders, func(c *store.Change, r node.Revocation) error {
		r.Failure, r.Impossible = nil, &node.Impossible{Reason: why[r.ID].Error(), FoundAt: q.now().UTC()}
		line := audit.OfRevocation(ctx, q.now(), node.ActionImpossible, r)
		line.Outcome, line.Comment = "refused", r.Impossible.Reason
		c.Audit(line)
		c.PutRevocation(r)
		cert, err := q.store.Certificate(ctx, r.Serial)
		if errors.Is(err, node.ErrCertificateNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		cert.Revocation, cert.Impossible = r.ID, true
		c.PutCertificate(cert)
		return nil
	})
	if err != nil {
		return fmt.Errorf("close %d revocations that the CA can't carry out: %w", len(refused), err)
	}
	q.wakeWaiters()
	for _, r := range refused {
		q.log.WithError(r.why).WithFields(logrus.Fields{"id": r.order.ID, "certname": r.order.Certname, "serial": r.order.Serial}).
			Error("the CA can't revoke a certificate, which stays valid until it expires")
	}
	return nil
}
