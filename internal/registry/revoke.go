package registry

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// RevokeRequest names one certificate to revoke: by its serial, or as the live one of
// a certname. A certificate that espm did not issue needs the certname.
type RevokeRequest struct {
	Certname node.Certname
	Serial   node.Serial
	Reason   node.Reason
	Comment  string
	// Force revokes what is protected, what was not issued by espm, and anew what has a receipt.
	Force bool
}

// Revoke orders the revocation of one certificate and waits up to wait for the
// receipt. The registration that holds the certificate stays, without
// one. A certificate whose revocation was ordered before gives that order; with Force, one
// that has its receipt is ordered anew, as the CRL that listed it may be lost. Errors:
// node.ErrNotPermitted, ErrNodeNotFound, ErrCertificateNotFound, ErrProtected,
// ErrForeignCertificate (espm did not issue it, and Force is not set), ErrIssuing.
func (r *Registry) Revoke(ctx context.Context, req RevokeRequest, wait time.Duration, validateOnly bool) (node.Revocation, error) {
	var rev node.Revocation
	if req.Certname == "" && req.Serial == "" {
		return rev, node.Invalid("certname", "must not be empty where there is no serial")
	}
	if err := checkComment(req.Comment); err != nil {
		return rev, err
	}
	a := accessOf(ctx)
	if err := a.write(); err != nil {
		return rev, err
	}
	if err := a.admin("force", "force a revocation"); req.Force && err != nil {
		return rev, err
	}
	err := retry(func() error {
		c := store.NewChange()
		var err error
		var isNew bool
		if rev, isNew, err = r.revoke(ctx, c, req); err != nil || validateOnly || !isNew {
			return err
		}
		line := audit.OfRevocation(ctx, r.Now(), node.ActionOrder, rev)
		if req.Force {
			line.Comment = strings.TrimSpace("forced " + line.Comment)
		}
		c.Audit(line)
		rev.Revision, err = r.Store.Commit(ctx, c)
		return err
	})
	if validateOnly && rev.Revision == 0 {
		rev.ID = "" // there is no such order
	}
	if err != nil || validateOnly {
		return rev, err
	}
	r.Revocations.Kick()
	if wait == 0 {
		return rev, nil
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	revs, err := r.Revocations.Wait(limited, []node.Revocation{rev})
	return revs[0], err
}

// RetryRevocation has an open revocation tried again at once. Errors: node.ErrNotPermitted, ErrRevocationNotFound, ErrRevocationClosed.
func (r *Registry) RetryRevocation(ctx context.Context, id string) (node.Revocation, error) {
	if err := accessOf(ctx).admin("", "have a revocation tried again"); err != nil {
		return node.Revocation{}, err
	}
	return r.Revocations.Retry(ctx, id)
}

// DropRevocation closes an open revocation without carrying it out: its certificate
// stays valid. The comment says why, and is required. Errors: node.ErrNotPermitted, and those of revoke.Queue.Drop.
func (r *Registry) DropRevocation(ctx context.Context, id, comment string) (node.Revocation, error) {
	if err := accessOf(ctx).admin("", "drop a revocation"); err != nil {
		return node.Revocation{}, err
	}
	if comment == "" {
		return node.Revocation{}, node.Invalid("comment", "must not be empty: say why the certificate may stay valid")
	}
	if err := checkComment(comment); err != nil {
		return node.Revocation{}, err
	}
	return r.Revocations.Drop(ctx, id, comment)
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

// revoke adds the order to a change, or returns the one that there is.
func (r *Registry) revoke(ctx context.Context, c *store.Change, req RevokeRequest) (rev node.Revocation, isNew bool, err error) {
	order := node.Revocation{Serial: req.Serial, Certname: req.Certname, Reason: req.Reason, Comment: req.Comment}
	var standing *x509.Certificate
	if order.Serial == "" {
		n, err := r.node(ctx, req.Certname)
		switch {
		case errors.Is(err, node.ErrNodeNotFound) && req.Force:
			if p, err := r.pendingForeign(ctx, order); p.ID != "" || err != nil {
				return p, false, err
			}
			if standing, err = r.foreign(ctx, order.Certname, ""); err != nil {
				return rev, false, err
			}
			n.Serial = node.SerialOf(standing.SerialNumber) // which espm may know after all
		case err != nil:
			return rev, false, err
		case n.State == node.Issuing:
			return rev, false, fmt.Errorf("%w: for %q", node.ErrIssuing, n.Certname)
		case n.Serial == "":
			return rev, false, fmt.Errorf("%w: %q has none", node.ErrCertificateNotFound, n.Certname)
		}
		order.Serial = n.Serial
	}
	cert, err := r.certificate(ctx, order.Serial)
	if errors.Is(err, node.ErrCertificateNotFound) && order.Certname != "" && !accessOf(ctx).confined() {
		rev, err = r.revokeForeign(ctx, c, order, standing, req.Force)
		return rev, rev.Revision == 0, err
	}
	if err != nil {
		return rev, false, err
	}
	if order.Certname != "" && order.Certname != cert.Certname {
		return rev, false, node.Invalid("certname", "serial %s is of %q, not of %q", cert.Serial, cert.Certname, order.Certname)
	}
	if cert.Revocation != "" && (cert.Receipt == nil || !req.Force) {
		rev, err = r.Store.Revocation(ctx, cert.Revocation)
		return rev, false, err
	}
	if err := r.unprotected(cert.Certname); err != nil && !req.Force {
		return rev, false, err
	}
	switch n, err := r.Store.Node(ctx, cert.Certname); {
	case err == nil && n.Serial == cert.Serial:
		if err := r.lose(c, n); err != nil {
			return rev, false, err
		}
	case err != nil && !errors.Is(err, node.ErrNodeNotFound):
		return rev, false, err
	}
	return r.orderFor(c, cert, order), true, nil
}

// lose takes from a live registration its certificate, whose revocation is in the same change.
func (r *Registry) lose(c *store.Change, old node.Node) error {
	n, err := old.Lose(old.Serial, r.Now())
	if err == nil {
		c.PutNode(&old, n)
	}
	return err
}

// revokeForeign orders the revocation of a certificate that the authority issued, but not
// through espm, or returns the order that there is. With it comes a record, where the
// certificate can be had, so that an import at the same moment does not adopt it.
func (r *Registry) revokeForeign(ctx context.Context, c *store.Change, order node.Revocation, cert *x509.Certificate, force bool) (node.Revocation, error) {
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
		return order, fmt.Errorf("%w: serial %s of %q; it is revoked only if that is forced", node.ErrForeignCertificate, order.Serial, order.Certname)
	}
	order = r.Revocations.Order(c, order)
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

// pendingForeign returns the open order for a foreign certificate of that name, and of
// that serial if there is one; the zero value where there is none.
func (r *Registry) pendingForeign(ctx context.Context, order node.Revocation) (node.Revocation, error) {
	pending, err := r.Store.PendingOf(ctx, order.Certname)
	for _, p := range pending {
		if p.UID == "" && (order.Serial == "" || order.Serial == p.Serial) {
			return p, err
		}
	}
	return node.Revocation{}, err
}

// foreign asks the authority for a name's certificate, "" for the serial of the one that
// stands under it. It is nil where the authority issued the serial for the name and no longer has it.
func (r *Registry) foreign(ctx context.Context, name node.Certname, serial node.Serial) (*x509.Certificate, error) {
	current, err := r.Authority.Check(ctx, ca.Request{Certname: name})
	if err != nil {
		return nil, err
	}
	if current != nil && (serial == "" || serial == node.SerialOf(current.SerialNumber)) {
		return current, r.checkForeign(ctx, name, current)
	}
	if serial == "" {
		return nil, fmt.Errorf("%w: the CA has no valid one of %q", node.ErrCertificateNotFound, name)
	}
	var found ca.Found
	if !r.Authority.Traits().RevokesByName {
		found, err = r.Authority.Find(ctx, ca.Query{Certname: name, Serial: serial})
	}
	switch {
	case err != nil:
		return nil, err
	case !found.Issued:
		return nil, fmt.Errorf("%w: the CA has no serial %s of %q", node.ErrCertificateNotFound, serial, name)
	case found.Certificate != nil:
		return found.Certificate, r.checkForeign(ctx, name, found.Certificate)
	}
	return nil, nil
}

// checkForeign says why what stands under a name is not the name's: somebody may have put it there.
func (r *Registry) checkForeign(ctx context.Context, name node.Certname, cert *x509.Certificate) error {
	trust, err := r.Authority.Trust(ctx)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(trust.CertificatesPEM)
	if block == nil {
		return errors.New("the CA shows no certificate of its own")
	}
	issuer, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("the CA's certificate: %w", err)
	}
	if why := ca.CheckHeld(cert, name, issuer, r.Now()); why != nil {
		return fmt.Errorf("%w: serial %s, which stands under %q: %w", node.ErrCertificateNotFound, node.SerialOf(cert.SerialNumber), name, why)
	}
	return nil
}

// orderRevocation adds the order to revoke a certificate that is stored.
func (r *Registry) orderRevocation(ctx context.Context, c *store.Change, order node.Revocation) (node.Revocation, error) {
	cert, err := r.Store.Certificate(ctx, order.Serial)
	if err != nil {
		return order, err
	}
	return r.orderFor(c, cert, order), nil
}

// orderFor is orderRevocation of a certificate that was read.
func (r *Registry) orderFor(c *store.Change, cert node.Certificate, order node.Revocation) node.Revocation {
	order.Serial, order.Certname, order.UID = cert.Serial, cert.Certname, cert.UID
	order.Owner = cert.Owner
	order = r.Revocations.Order(c, order)
	cert.Revocation, cert.Receipt = order.ID, nil
	c.PutCertificate(cert)
	return order
}

// revokeHeld orders the revocation of the certificate that a live registration holds.
func (r *Registry) revokeHeld(ctx context.Context, name node.Certname, uid node.UID) error {
	old, err := r.Store.Node(ctx, name)
	if errors.Is(err, node.ErrNodeNotFound) || err == nil && (old.UID != uid || old.Serial == "") {
		return nil
	}
	if err != nil {
		return err
	}
	c := store.NewChange()
	rev, err := r.orderRevocation(ctx, c, node.Revocation{Serial: old.Serial})
	if err != nil {
		return err
	}
	c.Audit(audit.OfRevocation(ctx, r.Now(), node.ActionOrder, rev))
	if err := r.lose(c, old); err != nil {
		return err
	}
	_, err = r.Store.Commit(ctx, c)
	r.Revocations.Kick()
	return err
}
