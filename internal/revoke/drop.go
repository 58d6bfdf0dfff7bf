package revoke

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// dropPatience bounds how long a drop waits for its turn, and then for the authority's answer.
const dropPatience = 5 * time.Second

// beginTurn waits for the turn, which endTurn ends. It returns false if ctx ends first. Callers get the turn in the
// order in which they began to wait, so a drop runs between two pages.
func (q *Queue) beginTurn(ctx context.Context) bool {
	select {
	case q.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (q *Queue) endTurn() { <-q.turn }

// Drop closes an open order without carrying it out: the certificate stays valid. The live registration that had
// the certificate gets it back, beside a newer one if there is one. Errors: node.ErrRevocationNotFound;
// ErrRevocationClosed, also if the CRL lists the certificate already; ErrUnavailable if the authority works on a
// batch for longer than Drop waits, or can't tell whether an earlier try succeeded. After store.ErrUnknownOutcome
// nothing is revoked until the outcome is known: before that, Run would read the order as open.
func (q *Queue) Drop(ctx context.Context, id, comment string) (node.Revocation, error) {
	r, err := q.open(ctx, id)
	if err != nil {
		return r, err
	}
	patience, cancel := context.WithTimeout(ctx, dropPatience)
	defer cancel()
	if !q.beginTurn(patience) {
		return r, &node.BusyError{
			Reason:     fmt.Sprintf("the CA is carrying out revocations, and may be revoking serial %s of %q", r.Serial, r.Certname),
			RetryAfter: dropPatience,
		}
	}
	inDoubt := false
	defer func() {
		if !inDoubt {
			q.endTurn()
		}
	}()
	if err := q.unlisted(ctx, r); err != nil {
		return r, err
	}
	r, err = q.change(ctx, id, node.ActionDrop, func(c *store.Change, r *node.Revocation) error {
		r.Drop = &node.Drop{Comment: comment, DroppedAt: q.now().UTC()}
		return q.freeCertificate(ctx, c, *r)
	})
	if inDoubt = errors.Is(err, store.ErrUnknownOutcome); inDoubt {
		go q.finishDrop(context.WithoutCancel(ctx), r, err)
	}
	if err == nil {
		q.dropped(r)
	}
	return r, err
}

// finishDrop waits until the outcome of a drop is known, and then ends the turn. It gives up when Run has ended, as
// nothing is carried out then.
func (q *Queue) finishDrop(ctx context.Context, r node.Revocation, err error) {
	defer q.endTurn()
	for errors.Is(err, store.ErrUnknownOutcome) {
		q.log.WithError(err).WithFields(logrus.Fields{"id": r.ID, "certname": r.Certname, "serial": r.Serial}).
			Error("the store does not answer while the drop of a revocation is written; espm revokes nothing until it does")
		if pause(ctx, minBackoff, q.stopped); q.hasStopped() {
			return
		}
		_, err = q.store.Settle(ctx, err)
	}
	if err == nil {
		q.dropped(r)
	}
}

func (q *Queue) hasStopped() bool {
	select {
	case <-q.stopped:
		return true
	default:
		return false
	}
}

func (q *Queue) dropped(r node.Revocation) {
	q.log.WithFields(logrus.Fields{"id": r.ID, "certname": r.Certname, "serial": r.Serial, "comment": r.Drop.Comment}).Warn("revocation dropped")
	q.wakeWaiters()
}

// unlisted checks that no earlier try of an order has put its certificate on the CRL.
func (q *Queue) unlisted(ctx context.Context, r node.Revocation) error {
	limited, cancel := context.WithTimeout(ctx, dropPatience)
	defer cancel()
	number, err := q.authority.Listed(limited, r.Serial)
	switch {
	case err != nil:
		return fmt.Errorf("serial %s of %q may be revoked already: %w", r.Serial, r.Certname, err)
	case number != "":
		return fmt.Errorf("%w: %s, of %q, is on CRL %s already, and will get its receipt soon", node.ErrRevocationClosed, r.ID, r.Certname, number)
	}
	return nil
}

// freeCertificate clears the order in the certificate of a dropped order.
func (q *Queue) freeCertificate(ctx context.Context, c *store.Change, r node.Revocation) error {
	cert, err := q.store.Certificate(ctx, r.Serial)
	if errors.Is(err, node.ErrCertificateNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if cert.UID == "" { // a foreign certificate: its record was made for the order
		c.RemoveCertificate(cert)
		return nil
	}
	cert.Revocation = ""
	c.PutCertificate(cert)
	return q.restore(ctx, c, cert)
}

// restore adds the certificate of a dropped order to its live registration again. It does nothing if the
// registration is not live or has an issue under way, or if the certificate has expired.
func (q *Queue) restore(ctx context.Context, c *store.Change, cert node.Certificate) error {
	old, err := q.store.Node(ctx, cert.Certname)
	if errors.Is(err, node.ErrNodeNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	held := make([]node.Certificate, len(old.Serials))
	for i, serial := range old.Serials {
		if held[i], err = q.store.Certificate(ctx, serial); err != nil {
			return err
		}
	}
	if n, err := old.Restore(cert, held, q.now()); err == nil {
		c.PutNode(&old, n)
	}
	return nil
}
