package registry

import (
	"context"
	"fmt"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Forget takes the live registration of a name out of the classifier, and removes the records of its certificates:
// they stay valid, and are nobody's then, as before an import. It orders no revocation. Revocations that are open
// are carried out. It returns the tombstone, and the certificates that were given up. The name may be protected.
// Errors: node.ErrNotPermitted, ErrNodeNotFound, ErrUIDMismatch, ErrIssuing.
func (ts *terminations) Forget(ctx context.Context, name node.Certname, uid node.UID, validateOnly bool) (node.Node, []node.Certificate, error) {
	if err := accessOf(ctx).admin("", "forget a node"); err != nil {
		return node.Node{}, nil, err
	}
	var gone node.Node
	var given []node.Certificate
	err := retry(func() (err error) {
		gone, given, err = ts.giveUp(ctx, name, uid, validateOnly)
		return err
	})
	if err != nil {
		return gone, nil, fmt.Errorf("forgetting %q: %w", name, err)
	}
	if !validateOnly {
		ts.log.WithFields(logrus.Fields{"certname": name, "uid": gone.UID, "serials": gone.Serials}).Info("node forgotten, its certificates stay valid")
	}
	return gone, given, nil
}

func (ts *terminations) giveUp(ctx context.Context, name node.Certname, uid node.UID, validateOnly bool) (node.Node, []node.Certificate, error) {
	n, err := ts.view.node(ctx, name)
	if err != nil {
		return n, nil, err
	}
	if err := (Expect{UID: uid}).check(n.UID, 0); err != nil {
		return n, nil, err
	}
	gone, err := n.Forget(ts.now())
	if err != nil {
		return n, nil, err
	}
	certs, err := ts.store.CertificatesOfLife(ctx, name, n.UID)
	if err != nil {
		return n, nil, err
	}
	c := store.NewChange()
	c.RemoveNode(n)
	c.PutTombstone(gone)
	var given []node.Certificate
	for _, cert := range certs {
		if cert.Revocation != "" { // its records stay until housekeeping removes them with the tombstone
			continue
		}
		c.RemoveCertificate(cert)
		line := ts.line(ctx, node.ActionGiveUp, n)
		line.Serial = cert.Serial
		c.Audit(line)
		given = append(given, cert)
	}
	if len(given) == 0 {
		c.Audit(ts.line(ctx, node.ActionGiveUp, n))
	}
	if validateOnly {
		return gone, given, nil
	}
	gone.Revision, err = ts.store.Commit(ctx, c)
	return gone, given, err
}
