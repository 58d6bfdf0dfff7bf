package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/secret"
	"github.com/espm-project/espm/internal/store"
)

// issuance is one call that issues a certificate. Its steps are recall, begin, sign, commit and answer. The
// package comment says what a crash between them leaves.
type issuance struct {
	*issuer
	caller  context.Context // ends when the caller has gone: an issue that has not begun stops then
	order   order
	request *node.Request    // nil if the caller sent no request id
	intent  node.IssueIntent // set by begin
}

// run does all steps, and starts over if another writer changed the records first.
func (i *issuance) run(ctx context.Context, begin func(context.Context) error) (Provisioned, error) {
	for range maxAttempts {
		earlier, err := i.registrations.earlier(ctx, i.request)
		if err != nil {
			return Provisioned{}, err
		}
		if earlier != nil && earlier.State == node.Issuing {
			if err := i.settlement.settleNode(ctx, *earlier); err != nil {
				return Provisioned{}, fmt.Errorf("an earlier issue for %q is not settled yet: %w", earlier.Certname, err)
			}
			continue // the certificate is adopted, or the registration removed
		}
		if earlier != nil {
			p, ok, err := i.recall(ctx, *earlier)
			if err != nil || ok {
				return p, err
			}
			begin = func(ctx context.Context) error { return i.beginAgain(ctx, *earlier, false) }
		}
		begun := time.Now()
		err = begin(ctx)
		if errors.Is(err, node.ErrStale) {
			continue
		}
		if err != nil {
			return Provisioned{}, err
		}
		defer i.settlement.unlockIntent(i.intent.UID)
		i.stage(stageRegistered, time.Since(begun))
		return i.finish(ctx)
	}
	return Provisioned{}, fmt.Errorf("%w: other calls changed the node %d times in a row; try again", node.ErrUnavailable, maxAttempts)
}

// finish does the steps after begin. After an error it settles the intent, or leaves that to Run.
func (i *issuance) finish(ctx context.Context) (Provisioned, error) {
	cert, err := i.sign(ctx)
	var n node.Node
	if err == nil {
		n, err = i.commit(ctx, cert)
	}
	if err != nil {
		err = fmt.Errorf("issuing a certificate for %q: %w", i.intent.Certname, err)
		i.settlement.abandon(ctx, i.intent, cert, err)
		return Provisioned{}, err
	}
	i.log.WithFields(logrus.Fields{"certname": n.Certname, "uid": n.UID, "serial": n.Newest()}).Info("certificate issued")
	return i.answer(ctx, n, cert)
}

// recall repeats the answer to an earlier call with the same request id. It returns false if it can't: the
// certificate was never issued, or espm no longer has its private key. It returns an error if another request
// issued the node's certificate: this call must not return that certificate, or replace it.
func (i *issuance) recall(ctx context.Context, n node.Node) (Provisioned, bool, error) {
	if n.State != node.Provisioned {
		return Provisioned{}, false, nil
	}
	cert, err := i.store.Certificate(ctx, n.Newest())
	if err != nil {
		return Provisioned{}, false, err
	}
	if cert.RequestID != i.request.Key() {
		return Provisioned{}, false, fmt.Errorf("%w: %q holds %s, which another call issued", node.ErrCertificateExists, n.Certname, n.Newest())
	}
	var key secret.Text
	if i.order.request.CSR == nil {
		var known bool
		if key, known = i.answers.get(i.request.Key(), n.Newest()); !known {
			return Provisioned{}, false, nil
		}
	}
	b, err := i.bundle(ctx, n, []byte(cert.PEM), key)
	return Provisioned{n, b}, true, err
}

// beginNew commits a new registration with its intent, locked for this call.
func (i *issuance) beginNew(ctx context.Context, n node.Node) error {
	// First, as generating a key may take seconds.
	if err := i.registrations.addNode(ctx, &n, nil, nil, true); err != nil {
		return err
	}
	if err := i.prepare(ctx, n); err != nil {
		return err
	}
	i.intent.NewNode, i.intent.NewRequest = true, i.request != nil
	return i.commitLocked(n, func() error { return i.registrations.addNode(ctx, &n, i.request, &i.intent, false) })
}

// beginAgain commits an intent for a live node, locked for this call, and the request if it is new. It orders
// the revocation of the node's certificates: the private key of the newest was lost with the answer. An
// authority that revokes by name must have carried out these orders before it signs.
func (i *issuance) beginAgain(ctx context.Context, old node.Node, isNew bool) error {
	if err := i.names.unprotected(old.Certname); len(old.Serials) > 0 && err != nil {
		return fmt.Errorf("espm no longer has the private key of the earlier answer for %q, and may not revoke %s to issue another: %w", old.Certname, old.Newest(), err)
	}
	if len(old.Serials) > 0 && i.authority.Traits().RevokesByName {
		if err := i.orders.revokeLife(ctx, old.Certname, old.UID); err != nil {
			return err
		}
		return fmt.Errorf("%w: the certificates %[3]v of %[2]q are to be revoked first", node.ErrStale, old.Certname, old.Serials)
	}
	if err := i.prepare(ctx, old); err != nil {
		return err
	}
	n, err := old.LoseAll(i.now())
	if err == nil {
		n, err = n.BeginIssue(i.now())
	}
	if err != nil {
		return err
	}
	c := store.NewChange()
	line := i.naming(ctx, node.ActionBegin, n)
	line.Serial, line.RequestID = i.intent.Serial, node.RequestIDOf(i.intent.RequestID)
	c.Audit(line)
	if i.request != nil && isNew {
		i.intent.NewRequest = true
		n.Requests = append(n.Requests, i.request.Key())
		c.PutRequest(*i.request)
	}
	c.PutIntent(i.intent)
	revs, err := i.orders.ofNode(ctx, c, old, node.Revocation{})
	if err != nil {
		return err
	}
	i.orders.audit(ctx, c, revs, false)
	c.PutNode(&old, n)
	err = i.commitLocked(n, func() error {
		_, err := i.store.Commit(ctx, c)
		return err
	})
	i.orders.queue.Kick()
	return err
}

// commitLocked commits an intent that is locked for this call: nobody settles it before the caller calls
// unlockIntent. After an error the intent is not locked.
func (i *issuance) commitLocked(n node.Node, commit func() error) error {
	if !i.settlement.lockIntent(n.UID) {
		return fmt.Errorf("%w: for %q", node.ErrIssuing, n.Certname)
	}
	err := commit()
	if err != nil {
		i.settlement.unlockIntent(n.UID)
	}
	if errors.Is(err, store.ErrUnknownOutcome) {
		i.settlement.settleSoon() // the intent may be committed, and this call ends here
	}
	return err
}

// prepare waits for the fence, has the authority check the request, generates a key unless the caller sent a
// CSR, and sets the intent.
func (i *issuance) prepare(ctx context.Context, n node.Node) error {
	if err := i.clock(); err != nil {
		return fmt.Errorf("issue a certificate for %q: %w", n.Certname, err)
	}
	if err := i.fence.wait(i.caller, n); err != nil {
		return err
	}
	if err := i.vetIssue(ctx, i.order); err != nil {
		return err
	}
	if i.order.request.CSR == nil && i.order.request.Key == nil {
		key, err := i.keys.NewKey(ctx, i.order.algorithm)
		if err != nil {
			return fmt.Errorf("%w: generate a %s key for %q: %w", node.ErrUnavailable, i.order.algorithm, n.Certname, err)
		}
		i.order.request.Key = key
	}
	wanted, err := i.order.request.Wanted()
	if err != nil {
		return err
	}
	i.order.request.Serial = i.authority.NewSerial()
	i.intent = node.IssueIntent{
		UID:         n.UID,
		Certname:    n.Certname,
		Serial:      i.order.request.Serial,
		KeyHash:     wanted.KeyHash,
		CallerKey:   i.order.request.CSR != nil,
		CreatedAt:   i.now().UTC(),
		DNSAltNames: wanted.DNSAltNames,
		Extensions:  wanted.Extensions,
		TTL:         wanted.TTL,
	}
	if i.request != nil {
		i.intent.RequestID = i.request.Key()
	}
	return nil
}

// sign has the authority sign. If the certificate does not match the intent, sign returns it with the error.
func (i *issuance) sign(ctx context.Context) (*x509.Certificate, error) {
	if err := i.fence.check(ctx, i.intent); err != nil {
		return nil, err
	}
	begun := time.Now()
	cert, err := i.authority.Sign(ctx, i.order.request)
	if err != nil {
		return cert, err
	}
	i.stage(stageSigned, time.Since(begun))
	return cert, verify(cert, i.intent)
}

// commit commits a certificate and closes its intent.
func (i *issuance) commit(ctx context.Context, cert *x509.Certificate) (node.Node, error) {
	begun := time.Now()
	var n node.Node
	err := retry(func() error {
		old, err := i.store.Node(ctx, i.intent.Certname)
		if err != nil {
			return err
		}
		if old.UID != i.intent.UID {
			return fmt.Errorf("%w: registration %s of %q was removed meanwhile", node.ErrNodeNotFound, i.intent.UID, i.intent.Certname)
		}
		open, ok, err := i.store.Intent(ctx, i.intent.UID)
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("another call has settled its intent")
		}
		if n, err = old.Hold(node.SerialOf(cert.SerialNumber), i.now()); err != nil {
			return err
		}
		c := store.NewChange()
		line := i.line(ctx, node.ActionIssue, n)
		line.RequestID = node.RequestIDOf(i.intent.RequestID)
		c.Audit(line)
		c.PutNode(&old, n)
		c.PutCertificate(record(i.intent, n.Owner, cert))
		c.RemoveIntent(open)
		n.Revision, err = i.store.Commit(ctx, c)
		return err
	})
	if err == nil {
		i.stage(stageCommitted, time.Since(begun))
	}
	return n, err
}

// answer makes the bundle, and holds its private key in memory for a retry.
func (i *issuance) answer(ctx context.Context, n node.Node, cert *x509.Certificate) (Provisioned, error) {
	var key secret.Text
	if i.order.request.Key != nil {
		text, err := ca.MarshalKeyPEM(i.order.request.Key)
		if err != nil {
			return Provisioned{}, err
		}
		key = secret.New(text)
	}
	b, err := i.bundle(ctx, n, encodeCertificate(cert), key)
	if err != nil {
		return Provisioned{}, err
	}
	if i.request != nil && !key.IsZero() {
		i.answers.put(i.request.Key(), n.Newest(), key)
	}
	return Provisioned{n, b}, nil
}
