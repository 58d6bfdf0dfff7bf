package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/store"
)

// revoker revokes certificates for callers, including those that espm did not issue.
type revoker struct {
	core
	view      *view
	names     *certnames
	orders    *orders
	queue     Revocations
	authority interface {
		Check(ctx context.Context, r ca.Request) (*x509.Certificate, error)
		Find(ctx context.Context, q ca.Query) (ca.Found, error)
		Trust(ctx context.Context) (ca.Trust, error)
		Traits() ca.Traits
	}
}

// RevokeRequest names the certificates to revoke: the one with the serial or, if the serial is empty, all live
// ones of the certname. A certificate that espm did not issue needs the certname.
type RevokeRequest struct {
	Certname node.Certname
	Serial   node.Serial
	Reason   node.Reason
	Comment  string
	// Force revokes protected certificates and those that espm did not issue. It orders the revocation again if
	// there is a receipt, or if the revocation was impossible.
	Force bool
}

// Revoke orders the revocation of certificates and waits for the receipts, at most for wait. It returns the
// orders, newest certificate first. The registration stays, without the certificates. For a certificate with an
// earlier order, Revoke returns that order. With Force it orders a revoked certificate again, as the CRL that
// listed it may be lost. Errors:
// node.ErrNotPermitted, ErrNodeNotFound, ErrCertificateNotFound, ErrProtected,
// ErrForeignCertificate (espm did not issue it, and Force is not set), ErrIssuing, and ErrInvalid
// for one of several certificates where the authority revokes by name.
func (r *revoker) Revoke(ctx context.Context, req RevokeRequest, wait time.Duration, validateOnly bool) ([]node.Revocation, error) {
	if err := r.mayRevoke(ctx, req); err != nil {
		return nil, err
	}
	var revs []node.Revocation
	err := retry(func() error {
		c := store.NewChange()
		var err error
		var isNew bool
		if revs, isNew, err = r.revoke(ctx, c, req); err != nil || validateOnly || !isNew {
			return err
		}
		r.orders.audit(ctx, c, revs, req.Force)
		revision, err := r.store.Commit(ctx, c)
		for i := range revs {
			revs[i].Revision = revision
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if validateOnly {
		for i := range revs {
			if revs[i].Revision == 0 {
				revs[i].ID = "" // the order was not committed
			}
		}
		return revs, nil
	}
	r.queue.Kick()
	if wait == 0 {
		return revs, nil
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return r.queue.Wait(limited, revs)
}

func (r *revoker) mayRevoke(ctx context.Context, req RevokeRequest) error {
	if req.Certname == "" && req.Serial == "" {
		return node.Invalid("certname", "must not be empty where there is no serial")
	}
	if err := checkComment(req.Comment); err != nil {
		return err
	}
	a := accessOf(ctx)
	if err := a.write(); err != nil {
		return err
	}
	if err := a.admin("force", "force a revocation"); req.Force && err != nil {
		return err
	}
	return nil
}

// RetryRevocation makes an open revocation due at once. Errors: node.ErrNotPermitted, ErrRevocationNotFound, ErrRevocationClosed.
func (r *revoker) RetryRevocation(ctx context.Context, id string) (node.Revocation, error) {
	if err := accessOf(ctx).admin("", "retry a revocation"); err != nil {
		return node.Revocation{}, err
	}
	return r.queue.Retry(ctx, id)
}

// DropRevocation closes an open revocation without carrying it out: its certificate stays valid. A comment with
// the reason is required. Errors: node.ErrInvalid, ErrNotPermitted, and those of revoke.Queue.Drop.
func (r *revoker) DropRevocation(ctx context.Context, id, comment string) (node.Revocation, error) {
	if err := accessOf(ctx).admin("", "drop a revocation"); err != nil {
		return node.Revocation{}, err
	}
	if comment == "" {
		return node.Revocation{}, node.Invalid("comment", "must not be empty: say why the certificate may stay valid")
	}
	if err := checkComment(comment); err != nil {
		return node.Revocation{}, err
	}
	rev, err := r.store.Revocation(ctx, id)
	if err != nil {
		return rev, err
	}
	if node.CallerOf(ctx).Name == "certname:"+string(rev.Certname) {
		return node.Revocation{}, node.NotPermitted("id", "the certificate to revoke is of %q, who calls: another admin has to drop it", rev.Certname)
	}
	return r.queue.Drop(ctx, id, comment)
}

func checkComment(comment string) error {
	switch {
	case len(comment) > 1024:
		return node.Invalid("comment", "at most 1024 bytes, has %d", len(comment))
	case !utf8.ValidString(comment) || strings.ContainsFunc(comment, unicode.IsControl):
		return node.Invalid("comment", "must be valid UTF-8 without control characters")
	}
	return nil
}

// revoke adds the orders to a change, newest certificate first, or returns the existing orders.
func (r *revoker) revoke(ctx context.Context, c *store.Change, req RevokeRequest) (revs []node.Revocation, isNew bool, err error) {
	order := node.Revocation{Serial: req.Serial, Certname: req.Certname, Reason: req.Reason, Comment: req.Comment}
	if order.Serial != "" {
		rev, isNew, err := r.revokeSerial(ctx, c, order, nil, req.Force)
		return []node.Revocation{rev}, isNew, err
	}
	n, err := r.view.node(ctx, req.Certname)
	switch {
	case errors.Is(err, node.ErrNodeNotFound) && req.Force:
		rev, isNew, err := r.revokeUnregistered(ctx, c, order)
		return []node.Revocation{rev}, isNew, err
	case err != nil:
		return nil, false, err
	case n.State == node.Issuing:
		return nil, false, fmt.Errorf("%w: for %q", node.ErrIssuing, n.Certname)
	case len(n.Serials) == 0:
		return nil, false, fmt.Errorf("%w: %q has none", node.ErrCertificateNotFound, n.Certname)
	}
	if err := r.names.unprotected(n.Certname); err != nil && !req.Force {
		return nil, false, err
	}
	revs, err = r.orders.revokeAll(ctx, c, n, order)
	return revs, true, err
}

// revokeUnregistered orders the revocation of the authority's certificate of a name without a live registration.
func (r *revoker) revokeUnregistered(ctx context.Context, c *store.Change, order node.Revocation) (rev node.Revocation, isNew bool, err error) {
	if p, err := r.pendingForeign(ctx, order); p.ID != "" || err != nil {
		return p, false, err
	}
	current, err := r.foreign(ctx, order.Certname, "")
	if err != nil {
		return rev, false, err
	}
	order.Serial = node.SerialOf(current.SerialNumber) // espm may have a record of this serial
	return r.revokeSerial(ctx, c, order, current, true)
}

// revokeSerial orders the revocation of one certificate. current is that certificate, or nil if the authority was
// not asked for it yet.
func (r *revoker) revokeSerial(ctx context.Context, c *store.Change, order node.Revocation, current *x509.Certificate, force bool) (rev node.Revocation, isNew bool, err error) {
	cert, err := r.view.certificate(ctx, order.Serial)
	if errors.Is(err, node.ErrCertificateNotFound) && order.Certname != "" && !accessOf(ctx).confined() {
		rev, err = r.revokeForeign(ctx, c, order, current, force)
		return rev, rev.Revision == 0, err
	}
	if err != nil {
		return rev, false, err
	}
	if order.Certname != "" && order.Certname != cert.Certname {
		return rev, false, node.Invalid("certname", "serial %s is of %q, not of %q", cert.Serial, cert.Certname, order.Certname)
	}
	closed := cert.Receipt != nil || cert.Impossible
	if cert.Revocation != "" && !(closed && force) {
		rev, err = r.store.Revocation(ctx, cert.Revocation)
		return rev, false, err
	}
	if err := r.names.unprotected(cert.Certname); err != nil && !force {
		return rev, false, err
	}
	n, live, err := r.live(ctx, cert.Certname)
	if err != nil {
		return rev, false, err
	}
	if live && n.Holds(cert.Serial) {
		if len(n.Serials) > 1 && r.authority.Traits().RevokesByName {
			return rev, false, node.Invalid("serial", "the CA revokes by name, so the %d certificates of %q are revoked together: name the node without a serial", len(n.Serials), n.Certname)
		}
		if err := r.orders.lose(c, n, cert.Serial); err != nil {
			return rev, false, err
		}
	}
	return r.orders.add(c, cert, order), true, nil
}

// revokeForeign orders the revocation of a certificate that the authority issued without espm, or returns the
// existing order. It adds a record of the certificate if the authority returns it, so that a concurrent import
// does not adopt it.
func (r *revoker) revokeForeign(ctx context.Context, c *store.Change, order node.Revocation, cert *x509.Certificate, force bool) (node.Revocation, error) {
	if p, err := r.pendingForeign(ctx, order); p.ID != "" || err != nil {
		return p, err
	}
	if cert == nil {
		var err error
		if cert, err = r.foreign(ctx, order.Certname, order.Serial); err != nil {
			return order, err
		}
	}
	if !force {
		return order, fmt.Errorf("%w: serial %s of %q; use force to revoke it", node.ErrForeignCertificate, order.Serial, order.Certname)
	}
	order = r.queue.Order(c, order)
	if cert != nil {
		c.PutCertificate(node.Certificate{
			Serial:     order.Serial,
			Certname:   order.Certname,
			NotBefore:  cert.NotBefore,
			NotAfter:   cert.NotAfter,
			PEM:        string(encodeCertificate(cert)),
			Revocation: order.ID,
		})
	}
	return order, nil
}

// pendingForeign returns the open order for a foreign certificate of order's name and, if order has a serial, of
// that serial. It returns the zero value if there is none.
func (r *revoker) pendingForeign(ctx context.Context, order node.Revocation) (node.Revocation, error) {
	pending, err := r.store.PendingOf(ctx, order.Certname)
	for _, p := range pending {
		if p.UID == "" && (order.Serial == "" || order.Serial == p.Serial) {
			return p, err
		}
	}
	return node.Revocation{}, err
}

// foreign asks the authority for a certificate of a name: the one with the serial or, if the serial is empty, the
// current one. It returns nil if the authority issued the serial for the name and has no copy.
func (r *revoker) foreign(ctx context.Context, name node.Certname, serial node.Serial) (*x509.Certificate, error) {
	current, err := r.authority.Check(ctx, ca.Request{Certname: name})
	byName := r.authority.Traits().RevokesByName
	if unreadable := errors.Is(err, node.ErrForeignCertificate); err != nil && (!unreadable || serial == "" || byName) {
		return nil, err
	}
	if current != nil && (serial == "" || serial == node.SerialOf(current.SerialNumber)) {
		return current, r.checkForeign(ctx, name, current)
	}
	if serial == "" {
		return nil, fmt.Errorf("%w: the CA has no valid certificate of %q", node.ErrCertificateNotFound, name)
	}
	var found ca.Found
	err = nil
	if !byName {
		found, err = r.authority.Find(ctx, ca.Query{Certname: name, Serial: serial})
	}
	switch {
	case err != nil:
		return nil, err
	case !found.Issued:
		return nil, fmt.Errorf("%w: the CA issued no serial %s of %q", node.ErrCertificateNotFound, serial, name)
	case found.Certificate != nil:
		return found.Certificate, r.checkForeign(ctx, name, found.Certificate)
	}
	return nil, nil
}

// checkForeign refuses a certificate that the CA did not issue for the name: anybody with access to the CA's
// folder may have put it there.
func (r *revoker) checkForeign(ctx context.Context, name node.Certname, cert *x509.Certificate) error {
	trust, err := r.authority.Trust(ctx)
	if err != nil {
		return err
	}
	issuer, err := pemfile.First(trust.CertificatesPEM)
	if err != nil {
		return fmt.Errorf("the CA's certificate: %w", err)
	}
	if why := ca.CheckExisting(cert, name, issuer, r.now()); why != nil {
		return fmt.Errorf("%w: serial %s, stored under %q: %w", node.ErrCertificateNotFound, node.SerialOf(cert.SerialNumber), name, why)
	}
	return nil
}
