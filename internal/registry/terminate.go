package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// terminations ends registrations.
type terminations struct {
	core
	view   *view
	names  *certnames
	orders *orders
	queue  interface {
		Kick()
		Wait(ctx context.Context, revs []node.Revocation) ([]node.Revocation, error)
	}
	settleSoon func()
	ended      <-chan struct{} // closed when Run has ended: no receipt can come after that
}

// Terminated is the outcome of a terminate.
type Terminated struct {
	Node        node.Node
	Revocations []node.Revocation
	// IssueOpen reports that an issue of the registration is not settled yet. Its certificate will be revoked.
	IssueOpen bool
}

// TerminateRequest names the registration to terminate: the one with the uid or, if the uid is empty, the live
// one of the certname. The reason is the reason of the revocations.
type TerminateRequest struct {
	Certname node.Certname
	UID      node.UID
	Reason   node.Reason
}

// Terminate ends a registration and orders the revocation of all its certificates, in one commit. Then it waits
// for the receipts, at most for wait, or until Run has ended. If the registration is already terminated,
// Terminate changes nothing and returns the state of that termination. The answer does not show a newer
// registration of the name that the caller may not see.
// Errors: node.ErrNotPermitted, ErrNodeNotFound, ErrUIDMismatch, ErrProtected.
func (ts *terminations) Terminate(ctx context.Context, req TerminateRequest, wait time.Duration, validateOnly bool) (Terminated, error) {
	if err := accessOf(ctx).write(); err != nil {
		return Terminated{}, err
	}
	if err := ts.names.unprotected(req.Certname); err != nil {
		return Terminated{}, err
	}
	var t Terminated
	err := retry(func() (err error) {
		t, err = ts.terminate(ctx, req, validateOnly)
		return err
	})
	if err != nil || validateOnly {
		return t, err
	}
	ts.queue.Kick()
	if wait > 0 {
		err = ts.await(ctx, &t, wait)
	}
	if err == nil {
		_, t.IssueOpen, err = ts.store.Intent(ctx, t.Node.UID)
	}
	return t, err
}

// await waits until all certificates of a terminated registration have their receipts.
func (ts *terminations) await(ctx context.Context, t *Terminated, wait time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	go func() { // stop to wait when the daemon stops
		select {
		case <-ts.ended:
			cancel()
		case <-limited.Done():
		}
	}()
	ts.settleSoon()
	err := ts.store.WaitIntent(limited, t.Node.UID)
	if err != nil && limited.Err() == nil {
		return err
	}
	if t.Revocations, err = ts.store.RevocationsOf(ctx, t.Node.Certname, t.Node.UID); err != nil {
		return err
	}
	t.Revocations, err = ts.queue.Wait(limited, t.Revocations)
	return err
}

func (ts *terminations) terminate(ctx context.Context, req TerminateRequest, validateOnly bool) (Terminated, error) {
	n, err := ts.view.node(ctx, req.Certname)
	if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
		return Terminated{}, err
	}
	if err != nil || req.UID != "" && req.UID != n.UID {
		return ts.earlierLife(ctx, req.Certname, req.UID, n.UID)
	}
	if validateOnly {
		n, err = n.Terminate(req.Reason, "", ts.now())
		return Terminated{Node: n}, err
	}
	return ts.end(ctx, n, req.Reason, "")
}

// end commits the termination of a live registration. why is the reason that espm gives if no caller asked for
// it; otherwise it is empty.
func (ts *terminations) end(ctx context.Context, n node.Node, reason node.Reason, why string) (Terminated, error) {
	var t Terminated
	var err error
	if t.Node, err = n.Terminate(reason, why, ts.now()); err != nil {
		return t, err
	}
	c := store.NewChange()
	line := ts.line(ctx, node.ActionTerminate, n)
	line.Comment = why
	c.Audit(line)
	c.RemoveNode(n)
	c.PutTombstone(t.Node)
	if err := ts.orderAll(ctx, c, n, reason); err != nil {
		return t, fmt.Errorf("terminate %q: %w", n.Certname, err)
	}
	if t.Node.Revision, err = ts.store.Commit(ctx, c); err != nil {
		return t, fmt.Errorf("terminate %q: %w", n.Certname, err)
	}
	fields := logrus.Fields{"certname": n.Certname, "uid": n.UID, "serials": n.Serials}
	if why != "" {
		fields["reason"] = why
	}
	ts.log.WithFields(fields).Info("node terminated")
	t.Revocations, err = ts.store.RevocationsOf(ctx, n.Certname, n.UID)
	return t, err
}

// orderAll adds the orders to revoke the certificates of a registration: those that it holds, and the valid ones
// whose earlier revocation was dropped. The audit line of the terminate names the newest certificate; each
// other gets a line of its own.
func (ts *terminations) orderAll(ctx context.Context, c *store.Change, n node.Node, reason node.Reason) error {
	certs, err := ts.store.CertificatesOfLife(ctx, n.Certname, n.UID)
	if err != nil {
		return err
	}
	missing := slices.Clone(n.Serials)
	for _, cert := range certs {
		if !n.Holds(cert.Serial) && (cert.Revocation != "" || ts.now().After(cert.NotAfter)) {
			continue
		}
		missing = slices.DeleteFunc(missing, func(s node.Serial) bool { return s == cert.Serial })
		rev := ts.orders.add(c, cert, node.Revocation{Reason: reason})
		if cert.Serial != n.Newest() {
			c.Audit(audit.OfRevocation(ctx, ts.now(), node.ActionOrder, rev))
		}
	}
	if len(missing) > 0 {
		return store.NoCertificate(missing[0])
	}
	return nil
}

// earlierLife answers a terminate of a registration that is already terminated.
func (ts *terminations) earlierLife(ctx context.Context, name node.Certname, uid, live node.UID) (Terminated, error) {
	var t Terminated
	var err error
	if uid == "" {
		a := accessOf(ctx)
		t.Node, err = ts.store.LastTombstone(ctx, name, func(n node.Node) bool { return a.sees(n.Owner) })
	} else {
		t.Node, err = ts.view.pastLife(ctx, name, uid)
	}
	if errors.Is(err, node.ErrNodeNotFound) && live != "" {
		return t, fmt.Errorf("%w: %q is registration %s, and %s is none of its earlier ones", node.ErrUIDMismatch, name, live, uid)
	}
	if err != nil {
		return t, err
	}
	t.Revocations, err = ts.store.RevocationsOf(ctx, name, t.Node.UID)
	return t, err
}
