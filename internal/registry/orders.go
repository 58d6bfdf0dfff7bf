package registry

import (
	"context"
	"strings"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// orders adds to a change the orders to revoke certificates, and removes the certificates from their
// registration. node.Node.Hold is the inverse.
type orders struct {
	core
	queue interface {
		Order(c *store.Change, order node.Revocation) node.Revocation
		Kick()
	}
}

// lose removes from a live registration a certificate whose revocation is ordered in the same change.
func (o *orders) lose(c *store.Change, old node.Node, serial node.Serial) error {
	n, err := old.Lose(serial, o.now())
	if err == nil {
		c.PutNode(&old, n)
	}
	return err
}

// ofNode adds the orders to revoke all certificates that a live registration holds, newest first. Each order is
// a copy of like, with the certificate's serial, name and owner.
func (o *orders) ofNode(ctx context.Context, c *store.Change, n node.Node, like node.Revocation) ([]node.Revocation, error) {
	var revs []node.Revocation
	for _, serial := range n.Serials {
		cert, err := o.store.Certificate(ctx, serial)
		if err != nil {
			return nil, err
		}
		revs = append(revs, o.add(c, cert, like))
	}
	return revs, nil
}

// add adds the order to revoke a certificate.
func (o *orders) add(c *store.Change, cert node.Certificate, order node.Revocation) node.Revocation {
	order.Serial, order.Certname, order.UID = cert.Serial, cert.Certname, cert.UID
	order.Owner = cert.Owner
	order = o.queue.Order(c, order)
	cert.Revocation, cert.Receipt, cert.Impossible = order.ID, nil, false
	c.PutCertificate(cert)
	return order
}

// revokeAll adds the orders of ofNode, and removes the certificates from the registration.
func (o *orders) revokeAll(ctx context.Context, c *store.Change, n node.Node, like node.Revocation) ([]node.Revocation, error) {
	revs, err := o.ofNode(ctx, c, n, like)
	if err != nil {
		return nil, err
	}
	without, err := n.LoseAll(o.now())
	if err != nil {
		return nil, err
	}
	c.PutNode(&n, without)
	return revs, nil
}

// revokeLife commits the orders to revoke the certificates of a registration. It does nothing if the registration
// is not live or holds no certificate.
func (o *orders) revokeLife(ctx context.Context, name node.Certname, uid node.UID) error {
	n, live, err := o.live(ctx, name)
	if err != nil || !live || n.UID != uid || len(n.Serials) == 0 {
		return err
	}
	c := store.NewChange()
	revs, err := o.revokeAll(ctx, c, n, node.Revocation{})
	if err != nil {
		return err
	}
	o.audit(ctx, c, revs, false)
	_, err = o.store.Commit(ctx, c)
	o.queue.Kick()
	return err
}

// audit adds the audit lines of orders to their change.
func (o *orders) audit(ctx context.Context, c *store.Change, revs []node.Revocation, force bool) {
	for _, rev := range revs {
		line := audit.OfRevocation(ctx, o.now(), node.ActionOrder, rev)
		if force {
			line.Comment = strings.TrimSpace("forced " + line.Comment)
		}
		c.Audit(line)
	}
}
