package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/secret"
	"github.com/espm-project/espm/internal/store"
)

// carryOut begins an issue and brings it to its end, or answers with the
// outcome of an earlier call with the request id. Before it has begun anything
// it waits no longer than patience, which is the caller's own context.
func (r *Registry) carryOut(ctx, patience context.Context, o *order, request *node.Request, begin func() (node.IssueIntent, error)) (Provisioned, error) {
	for range maxAttempts {
		earlier, err := r.earlier(ctx, request)
		if err != nil {
			return Provisioned{}, err
		}
		if earlier != nil && earlier.State == node.Issuing {
			if err := r.settleNode(ctx, *earlier); err != nil {
				return Provisioned{}, fmt.Errorf("an earlier issue for %q is not settled yet: %w", earlier.Certname, err)
			}
			continue // adopted, or gone
		}
		if earlier != nil {
			p, ok, err := r.recall(ctx, *earlier, o, request)
			if err != nil || ok {
				return p, err
			}
			begin = func() (node.IssueIntent, error) { return r.beginReissue(ctx, patience, *earlier, o, request, false) }
		}
		begun := time.Now()
		intent, err := begin()
		if errors.Is(err, node.ErrStale) {
			continue
		}
		if err != nil {
			return Provisioned{}, err
		}
		defer r.unlockIntent(intent.UID)
		r.Stage("registered", time.Since(begun))
		return r.issue(ctx, intent, *o, request)
	}
	return Provisioned{}, fmt.Errorf("%w: others keep changing the node", node.ErrUnavailable)
}

// recall answers a call that was answered before, false where it can't be:
// the certificate was never issued, or its private key is gone. A certificate that
// another request issued meanwhile is not this call's to give out, or to replace.
func (r *Registry) recall(ctx context.Context, n node.Node, o *order, request *node.Request) (Provisioned, bool, error) {
	if n.State != node.Provisioned {
		return Provisioned{}, false, nil
	}
	cert, err := r.Store.Certificate(ctx, n.Newest())
	if err != nil {
		return Provisioned{}, false, err
	}
	if cert.RequestID != request.Key() {
		return Provisioned{}, false, fmt.Errorf("%w: %q holds %s, which another call issued", node.ErrCertificateExists, n.Certname, n.Newest())
	}
	var key secret.Text
	if o.request.CSR == nil {
		var known bool
		if key, known = r.answers.get(request.Key(), n.Newest()); !known {
			return Provisioned{}, false, nil
		}
	}
	b, err := r.bundle(ctx, n, []byte(cert.PEM), key)
	return Provisioned{n, b}, true, err
}

// mayBegin tells what a provision would be refused for.
func (r *Registry) mayBegin(ctx context.Context, n node.Node, o order) error {
	if err := r.addNode(ctx, &n, nil, nil, true); err != nil {
		return err
	}
	return r.vet(ctx, o)
}

// vetIssue is vet before an issue: what the authority finds out when it signs is not asked.
func (r *Registry) vetIssue(ctx context.Context, o order) error {
	if authority, ok := r.Authority.(ca.FormChecker); ok {
		return authority.CheckForm(ctx, o.request)
	}
	return r.vet(ctx, o)
}

// vet asks the authority what it would refuse, and refuses a name whose
// certificate there was not issued by espm: nobody would know of it any more.
func (r *Registry) vet(ctx context.Context, o order) error {
	current, err := r.Authority.Check(ctx, o.request)
	if err != nil || current == nil {
		return err
	}
	serial := node.SerialOf(current.SerialNumber)
	if _, err := r.Store.Certificate(ctx, serial); !errors.Is(err, node.ErrCertificateNotFound) {
		return err
	}
	for intent, err := range r.Store.Intents(ctx) {
		if err != nil || intent.Certname == o.request.Certname {
			return err // its own, cut short and not settled yet
		}
	}
	return fmt.Errorf("%w: serial %s of %q, valid until %s", node.ErrForeignCertificate, serial, o.request.Certname, current.NotAfter.Format(time.RFC3339))
}

// beginNew commits a new registration with its intent, locked for this call.
func (r *Registry) beginNew(ctx, patience context.Context, n node.Node, o *order, request *node.Request) (node.IssueIntent, error) {
	// Before a key is made for it, which may take seconds.
	if err := r.addNode(ctx, &n, nil, nil, true); err != nil {
		return node.IssueIntent{}, err
	}
	if err := r.fence.wait(patience, n); err != nil {
		return node.IssueIntent{}, err
	}
	if err := r.vetIssue(ctx, *o); err != nil {
		return node.IssueIntent{}, err
	}
	intent, err := r.prepare(ctx, o, n, request)
	if err != nil {
		return intent, err
	}
	intent.NewNode, intent.NewRequest = true, request != nil
	return intent, r.commitLocked(n, func() error { return r.addNode(ctx, &n, request, &intent, false) })
}

// beginReissue commits an intent for a live node, locked for this call, with the
// request where that is new. The certificates that the node has are revoked: the private
// key of the newest was lost with the answer. An authority that revokes by name has to be
// done with that before it signs.
func (r *Registry) beginReissue(ctx, patience context.Context, old node.Node, o *order, request *node.Request, isNew bool) (node.IssueIntent, error) {
	if err := r.unprotected(old.Certname); len(old.Serials) > 0 && err != nil {
		return node.IssueIntent{}, fmt.Errorf("the answer for %q can't be had again, and %s is not revoked: %w", old.Certname, old.Newest(), err)
	}
	if len(old.Serials) > 0 && r.Authority.Traits().RevokesByName {
		if err := r.revokeLife(ctx, old.Certname, old.UID); err != nil {
			return node.IssueIntent{}, err
		}
		return node.IssueIntent{}, fmt.Errorf("%w: %q has lost its certificates %v", node.ErrStale, old.Certname, old.Serials)
	}
	if err := r.fence.wait(patience, old); err != nil {
		return node.IssueIntent{}, err
	}
	if err := r.vetIssue(ctx, *o); err != nil {
		return node.IssueIntent{}, err
	}
	intent, err := r.prepare(ctx, o, old, request)
	if err != nil {
		return intent, err
	}
	n, err := old.LoseAll(r.Now())
	if err == nil {
		n, err = n.BeginIssue(r.Now())
	}
	if err != nil {
		return intent, err
	}
	c := store.NewChange()
	line := r.line(ctx, node.ActionBegin, n)
	line.Serial, line.RequestID = intent.Serial, node.RequestIDOf(intent.RequestID)
	c.Audit(line)
	if request != nil && isNew {
		intent.NewRequest = true
		n.Requests = append(n.Requests, request.Key())
		c.PutRequest(*request)
	}
	c.PutIntent(intent)
	revs, err := r.orderHeld(ctx, c, old, node.Revocation{})
	if err != nil {
		return intent, err
	}
	r.auditOrders(ctx, c, revs, false)
	c.PutNode(&old, n)
	err = r.commitLocked(n, func() error {
		_, err := r.Store.Commit(ctx, c)
		return err
	})
	r.Revocations.Kick()
	return intent, err
}

// commitLocked commits an intent that is locked for this call: nothing settles it before the
// caller calls unlockIntent. After an error the intent is not locked.
func (r *Registry) commitLocked(n node.Node, commit func() error) error {
	if !r.lockIntent(n.UID) {
		return fmt.Errorf("%w: for %q", node.ErrIssuing, n.Certname)
	}
	err := commit()
	if err != nil {
		r.unlockIntent(n.UID)
	}
	if errors.Is(err, store.ErrUnknownOutcome) {
		r.settleSoon() // the intent may be there, and this call does not go on with it
	}
	return err
}

// prepare makes the key, where the caller sent none, and the intent.
func (r *Registry) prepare(ctx context.Context, o *order, n node.Node, request *node.Request) (node.IssueIntent, error) {
	if o.request.CSR == nil && o.request.Key == nil {
		key, err := r.Keys.Take(ctx, o.algorithm)
		if err != nil {
			return node.IssueIntent{}, fmt.Errorf("%w: making a %s key for %q: %w", node.ErrUnavailable, o.algorithm, n.Certname, err)
		}
		o.request.Key = key
	}
	wanted, err := o.request.Wanted()
	if err != nil {
		return node.IssueIntent{}, err
	}
	o.request.Serial = r.Authority.NewSerial()
	intent := node.IssueIntent{
		UID:         n.UID,
		Certname:    n.Certname,
		Serial:      o.request.Serial,
		KeyHash:     wanted.KeyHash,
		CallerKey:   o.request.CSR != nil,
		CreatedAt:   r.Now().UTC(),
		DNSAltNames: wanted.DNSAltNames,
		Extensions:  wanted.Extensions,
		TTL:         wanted.TTL,
	}
	if request != nil {
		intent.RequestID = request.Key()
	}
	return intent, nil
}

// issue has the certificate of an intent signed, commits it and answers. On
// an error the intent is settled, now or in Run.
func (r *Registry) issue(ctx context.Context, intent node.IssueIntent, o order, request *node.Request) (Provisioned, error) {
	log := r.Log.WithFields(logrus.Fields{"certname": intent.Certname, "uid": intent.UID})
	var cert *x509.Certificate
	err := r.fence.check(ctx, intent)
	if err == nil {
		begun := time.Now()
		if cert, err = r.Authority.Sign(ctx, o.request); err == nil {
			r.Stage("signed", time.Since(begun))
		}
	}
	if err == nil {
		err = verify(cert, intent)
	}
	var n node.Node
	if err == nil {
		begun := time.Now()
		if n, err = r.keep(ctx, intent, cert); err == nil {
			r.Stage("committed", time.Since(begun))
		}
	}
	if err != nil {
		err = fmt.Errorf("issuing a certificate for %q: %w", intent.Certname, err)
		r.abandon(ctx, intent, cert)
		return Provisioned{}, err
	}
	log.WithField("serial", n.Newest()).Info("certificate issued")
	var key secret.Text
	if o.request.Key != nil {
		text, err := ca.MarshalKeyPEM(o.request.Key)
		if err != nil {
			return Provisioned{}, err
		}
		key = secret.New(text)
	}
	b, err := r.bundle(ctx, n, encodeCertificate(cert), key)
	if err != nil {
		return Provisioned{}, err
	}
	if request != nil && !key.IsZero() {
		r.answers.put(request.Key(), n.Newest(), key)
	}
	return Provisioned{n, b}, nil
}

// verify makes sure that the certificate is what the intent is for.
func verify(cert *x509.Certificate, intent node.IssueIntent) error {
	return ca.Wanted{
		Certname:    intent.Certname,
		KeyHash:     intent.KeyHash,
		DNSAltNames: intent.DNSAltNames,
		Extensions:  intent.Extensions,
		TTL:         intent.TTL,
	}.Check(cert)
}

// keep commits a certificate and closes its intent.
func (r *Registry) keep(ctx context.Context, intent node.IssueIntent, cert *x509.Certificate) (node.Node, error) {
	var n node.Node
	err := retry(func() error {
		old, err := r.Store.Node(ctx, intent.Certname)
		if err != nil {
			return err
		}
		if old.UID != intent.UID {
			return fmt.Errorf("%w: registration %s of %q is gone", node.ErrNodeNotFound, intent.UID, intent.Certname)
		}
		open, ok, err := r.Store.Intent(ctx, intent.UID)
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("its intent was settled by another")
		}
		if n, err = old.Hold(node.SerialOf(cert.SerialNumber), r.Now()); err != nil {
			return err
		}
		c := store.NewChange()
		line := r.line(ctx, node.ActionIssue, n)
		line.RequestID = node.RequestIDOf(intent.RequestID)
		c.Audit(line)
		c.PutNode(&old, n)
		c.PutCertificate(record(intent, n.Owner, cert))
		c.RemoveIntent(open)
		n.Revision, err = r.Store.Commit(ctx, c)
		return err
	})
	return n, err
}

func record(intent node.IssueIntent, owner string, cert *x509.Certificate) node.Certificate {
	return node.Certificate{
		Serial:    node.SerialOf(cert.SerialNumber),
		Certname:  intent.Certname,
		UID:       intent.UID,
		Owner:     owner,
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		PEM:       string(encodeCertificate(cert)),
		RequestID: intent.RequestID,
	}
}

func encodeCertificate(cert *x509.Certificate) []byte {
	return pemfile.Encode(pemfile.Certificate, cert.Raw)
}

func (r *Registry) bundle(ctx context.Context, n node.Node, certificate []byte, key secret.Text) (bootstrap.Bundle, error) {
	trust, err := r.Authority.Trust(ctx)
	if err != nil {
		return bootstrap.Bundle{}, fmt.Errorf("the CA's certificates and CRL: %w", err)
	}
	classification, err := enc.Merge(ctx, r.Store, n)
	if err != nil {
		return bootstrap.Bundle{}, fmt.Errorf("the environment of %q: %w", n.Certname, err)
	}
	return bootstrap.Bundle{
		CertificatePEM: certificate,
		PrivateKeyPEM:  key,
		CAPEM:          trust.CertificatesPEM,
		CRLPEM:         trust.CRLsPEM,
		PuppetConf:     r.Puppet.PuppetConf(n.Certname, classification.Environment),
		MasterURL:      r.Puppet.URL(),
	}, nil
}
