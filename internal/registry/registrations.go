package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// registrations makes and changes registrations.
type registrations struct {
	core
	view   *view
	names  *certnames
	commit commitNode
}

// commitNode checks a node against its groups and against the caller's grant, and commits it with the change. It
// sets n's revision.
type commitNode func(ctx context.Context, c *store.Change, old *node.Node, n *node.Node, validateOnly bool) error

// Register registers and classifies a node without a certificate. The caller becomes its owner.
// Errors: node.ErrInvalid, ErrNotPermitted, ErrNodeExists, ErrGroupNotFound, ErrConflict,
// ErrRequestReused, ErrRequestSpent.
func (r *registrations) Register(ctx context.Context, n node.Node, requestID string, validateOnly bool) (node.Node, error) {
	if err := node.Join(n.Validate(), CheckRequestID(requestID)); err != nil {
		return n, err
	}
	if err := r.names.mayName(ctx, n.Certname); err != nil {
		return n, err
	}
	n = r.newNode(ctx, n)
	request, err := newRequest(ctx, n, requestID, "register", n.Spec())
	if err != nil {
		return n, err
	}
	err = retry(func() error {
		earlier, err := r.earlier(ctx, request)
		if err != nil {
			return err
		}
		if earlier != nil {
			n = *earlier
			return nil
		}
		return r.addNode(ctx, &n, request, nil, validateOnly)
	})
	return n, err
}

// addNode commits a new registration, and the intent of a provision if there is one. It sets n's revision.
func (r *registrations) addNode(ctx context.Context, n *node.Node, request *node.Request, intent *node.IssueIntent, validateOnly bool) error {
	_, err := r.store.Node(ctx, n.Certname)
	if err == nil {
		return fmt.Errorf("%w: certname %q is registered", node.ErrNodeExists, n.Certname)
	}
	if !errors.Is(err, node.ErrNodeNotFound) {
		return err
	}
	c := store.NewChange()
	line := r.naming(ctx, node.ActionRegister, *n)
	if request != nil {
		n.Requests = []string{request.Key()}
		line.RequestID = request.ID
		c.PutRequest(*request)
	}
	if intent != nil {
		line.Action, line.Serial = node.ActionProvision, intent.Serial
		c.PutIntent(*intent)
	}
	c.Audit(line)
	return r.commit(ctx, c, nil, n, validateOnly)
}

// changeOwner adds to a change the new owner of a registration's certificates and revocations. It refuses a
// registration with an issue under way: the change would miss the certificate of that issue.
func (r *registrations) changeOwner(ctx context.Context, c *store.Change, n node.Node, owner string) error {
	if n.State == node.Issuing {
		return fmt.Errorf("%w: for %q", node.ErrIssuing, n.Certname)
	}
	certs, err := r.store.CertificatesOfLife(ctx, n.Certname, n.UID)
	if err != nil {
		return err
	}
	revs, err := r.store.RevocationsOf(ctx, n.Certname, n.UID)
	if err != nil {
		return err
	}
	for _, cert := range certs {
		c.SetCertificateOwner(cert, owner)
	}
	for _, rev := range revs {
		c.SetRevocationOwner(rev, owner)
	}
	return nil
}
