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

// dropPatience is how long a drop waits for its turn, and then for the authority's answer.
const dropPatience = 5 * time.Second

// beginTurn waits for the turn, false where ctx ends before; endTurn ends it. The turn goes to the
// callers in the order in which they wait, so that a drop comes between two pages.
func (q *Queue) beginTurn(ctx context.Context) bool {
	select {
	case q.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (q *Queue) endTurn() { <-q.turn }

// Drop closes an open order without carrying it out: the certificate is left
// as it is. The live registration that held it holds it again, beside one that it got since.
// Errors: node.ErrRevocationNotFound; ErrRevocationClosed, also where the CRL has the certificate
// already; ErrUnavailable where the authority is at work on a batch, which may
// be for as long as that takes it, or can't tell what became of an earlier try.
func (q *Queue) Drop(ctx context.Context, id, comment string) (node.Revocation, error) {
	r, err := q.open(ctx, id)
	if err != nil {
		return r, err
	}
	patience, cancel := context.WithTimeout(ctx, dropPatience)
	defer cancel()
	if !q.beginTurn(patience) {
		return r, &node.BusyError{
			Reason:     fmt.Sprintf("the CA is at work on revocations, and serial %s of %q may be being carried out", r.Serial, r.Certname),
			RetryAfter: dropPatience,
		}
	}
	defer q.endTurn()
	if err := q.unlisted(ctx, r); err != nil {
		return r, err
	}
	r, err = q.change(ctx, id, node.ActionDrop, func(c *store.Change, r *node.Revocation) error {
		r.Drop = &node.Drop{Comment: comment, DroppedAt: q.now().UTC()}
		return q.freeCertificate(ctx, c, *r)
	})
	if err != nil {
		return r, err
	}
	q.log.WithFields(logrus.Fields{"id": r.ID, "certname": r.Certname, "serial": r.Serial, "comment": comment}).Warn("revocation dropped")
	q.ended()
	return r, nil
}

// unlisted makes sure that no earlier try of an order has put its certificate on the CRL.
func (q *Queue) unlisted(ctx context.Context, r node.Revocation) error {
	limited, cancel := context.WithTimeout(ctx, dropPatience)
	defer cancel()
	number, err := q.authority.Listed(limited, r.Serial)
	switch {
	case err != nil:
		return fmt.Errorf("serial %s of %q may be revoked already: %w", r.Serial, r.Certname, err)
	case number != "":
		return fmt.Errorf("%w: %s, of %q, is on CRL %s already, and has its receipt soon", node.ErrRevocationClosed, r.ID, r.Certname, number)
	}
	return nil
}

// freeCertificate frees the certificate of a dropped order.
func (q *Queue) freeCertificate(ctx context.Context, c *store.Change, r node.Revocation) error {
	cert, err := q.store.Certificate(ctx, r.Serial)
	if errors.Is(err, node.ErrCertificateNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if cert.UID == "" { // it has a record for the order alone
		c.RemoveCertificate(cert)
		return nil
	}
	cert.Revocation = ""
	c.PutCertificate(cert)
	return q.restore(ctx, c, cert)
}

// restore gives a certificate that is not revoked after all to its live
// registration again. It does not where the registration is gone, or is being issued
// a certificate, and where the certificate has expired.
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
