package registry

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// issueTimeout bounds an issue, which goes on when its caller has gone.
const issueTimeout = 2 * time.Minute

// Spec says what certificate to issue.
type Spec struct {
	CSRPEM       []byte // the caller's; empty: a key is made
	KeyAlgorithm string // "": the default
	TTL          time.Duration
	DNSAltNames  []string
	Extensions   map[string]string
}

// Provisioned is the outcome of a provision.
type Provisioned struct {
	Node   node.Node
	Bundle bootstrap.Bundle
}

// order is a checked Spec.
type order struct {
	request   ca.Request
	algorithm ca.KeyAlgorithm
}

// check returns what a Spec asks for. Its errors are *node.InvalidError.
func (r *Registry) check(name node.Certname, s Spec) (order, error) {
	o := order{algorithm: r.Algorithm}
	var algErr error
	if s.KeyAlgorithm != "" {
		o.algorithm, algErr = ca.ParseKeyAlgorithm(s.KeyAlgorithm)
	}
	if s.KeyAlgorithm != "" && len(s.CSRPEM) > 0 {
		algErr = node.Invalid("key_algorithm", "has no meaning with a CSR, whose key is made already")
	}
	exts, extErr := ca.ParseExtensions(s.Extensions)
	o.request = ca.Request{
		Certname:    name,
		DNSAltNames: ca.CleanDNSAltNames(name, s.DNSAltNames),
		Extensions:  exts,
		TTL:         s.TTL,
	}
	if err := node.Join(algErr, extErr, ca.CheckRequest(o.request)); err != nil {
		return o, err
	}
	if len(s.CSRPEM) == 0 {
		return o, nil
	}
	csr, err := ca.ParseCSR(s.CSRPEM, name)
	if err != nil {
		return o, err
	}
	o.request, err = o.request.WithCSR(csr)
	return o, err
}

// Provision registers and classifies a node and issues its certificate: all
// of it, or nothing. See the package comment for what a crash leaves. It goes
// on when ctx is cancelled, as the caller may come back for the answer. Errors
// are those of Register, and node.ErrUnavailable.
func (r *Registry) Provision(ctx context.Context, n node.Node, s Spec, requestID string, validateOnly bool) (Provisioned, error) {
	o, specErr := r.check(n.Certname, s)
	if err := node.Join(n.Validate(), checkRequestID(requestID), specErr); err != nil {
		return Provisioned{}, err
	}
	n = r.newNode(n, node.Issuing)
	request, err := r.newRequest(n, requestID, "provision", n.Spec(), s)
	if err != nil {
		return Provisioned{}, err
	}
	if validateOnly {
		if earlier, err := r.earlier(ctx, request); err != nil || earlier != nil {
			return Provisioned{Node: pick(earlier, n)}, err
		}
		return Provisioned{Node: n}, r.mayBegin(ctx, n, o)
	}
	work := func(ctx context.Context) (Provisioned, error) {
		return r.carryOut(ctx, &o, request, func() (node.IssueIntent, error) {
			return r.beginNew(ctx, n, &o, request)
		})
	}
	undo := func(ctx context.Context) error {
		_, err := r.terminate(ctx, n.Certname, n.UID, false)
		r.Revocations.Kick()
		return err
	}
	return r.fly(ctx, request, work, undo)
}

func pick(earlier *node.Node, n node.Node) node.Node {
	if earlier != nil {
		return *earlier
	}
	return n
}

// Issue issues a certificate for a node that is registered and has none, as
// uid where that is given. Errors: node.ErrInvalid, ErrNodeNotFound, ErrUIDMismatch,
// ErrCertificateExists, ErrIssuing, ErrRequestReused, ErrRequestSpent, ErrUnavailable.
func (r *Registry) Issue(ctx context.Context, name node.Certname, uid node.UID, s Spec, requestID string, validateOnly bool) (Provisioned, error) {
	o, specErr := r.check(name, s)
	if err := node.Join(checkRequestID(requestID), specErr); err != nil {
		return Provisioned{}, err
	}
	n, err := r.Store.Node(ctx, name)
	if err != nil {
		return Provisioned{}, err
	}
	if uid != "" && n.UID != uid {
		return Provisioned{}, fmt.Errorf("%w: %q is registration %s now", node.ErrUIDMismatch, name, n.UID)
	}
	request, err := r.newRequest(n, requestID, "issue", uid, s)
	if err != nil {
		return Provisioned{}, err
	}
	if validateOnly {
		if earlier, err := r.earlier(ctx, request); err != nil || earlier != nil {
			return Provisioned{Node: pick(earlier, n)}, err
		}
		return Provisioned{Node: n}, node.Join(mayIssue(n), r.vet(ctx, o))
	}
	work := func(ctx context.Context) (Provisioned, error) {
		return r.carryOut(ctx, &o, request, func() (node.IssueIntent, error) {
			now, err := r.Store.Node(ctx, name)
			if err != nil {
				return node.IssueIntent{}, err
			}
			if now.UID != n.UID {
				return node.IssueIntent{}, fmt.Errorf("%w: %q is registration %s now", node.ErrUIDMismatch, name, now.UID)
			}
			if err := mayIssue(now); err != nil {
				return node.IssueIntent{}, err
			}
			return r.beginReissue(ctx, now, &o, request, true)
		})
	}
	return r.fly(ctx, request, work, func(ctx context.Context) error { return r.drop(ctx, name, n.UID) })
}

func mayIssue(n node.Node) error {
	switch n.State {
	case node.Provisioned:
		return fmt.Errorf("%w: %q holds %s", node.ErrCertificateExists, n.Certname, n.Serial)
	case node.Issuing:
		return fmt.Errorf("%w: for %q", node.ErrIssuing, n.Certname)
	default:
		return nil
	}
}

// flight is what calls with one request id share.
type flight struct {
	Provisioned
	hash string
}

// fly makes calls at once with one request id one call, and lets it go on
// when the callers have gone: they may come back for the answer. Without a
// request id nobody can, so what was done is undone.
func (r *Registry) fly(ctx context.Context, request *node.Request, do func(context.Context) (Provisioned, error), undo func(context.Context) error) (Provisioned, error) {
	detached := func() (p Provisioned, err error) {
		r.calls.Add(1)
		defer r.calls.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), issueTimeout)
		defer cancel()
		defer func() {
			if recover() != nil { // singleflight would end the process; its value may hold a secret
				r.Log.WithField("stack", string(debug.Stack())).Error("issuing a certificate panicked")
				err = errors.New("espm failed on this call; its log says where")
				r.stir()
			}
		}()
		return do(ctx)
	}
	if request == nil {
		p, err := detached()
		if err == nil && ctx.Err() != nil {
			gone := fmt.Errorf("the caller for %q is gone: %w", p.Node.Certname, ctx.Err())
			return Provisioned{}, errors.Join(gone, retry(func() error { return undo(context.WithoutCancel(ctx)) }))
		}
		return p, err
	}
	done := r.flights.DoChan(request.ID, func() (any, error) {
		p, err := detached()
		return flight{p, request.Hash}, err
	})
	select {
	case res := <-done:
		f := res.Val.(flight)
		if f.hash != request.Hash {
			return Provisioned{}, fmt.Errorf("%w: request_id %q is in use just now", node.ErrRequestReused, request.ID)
		}
		return f.Provisioned, res.Err
	case <-ctx.Done():
		return Provisioned{}, fmt.Errorf("the call for %q goes on without its caller: %w", request.Certname, ctx.Err())
	}
}

// carryOut begins an issue and brings it to its end, or answers with the
// outcome of an earlier call with the request id.
func (r *Registry) carryOut(ctx context.Context, o *order, request *node.Request, begin func() (node.IssueIntent, error)) (Provisioned, error) {
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
			begin = func() (node.IssueIntent, error) { return r.beginReissue(ctx, *earlier, o, request, false) }
		}
		intent, err := begin()
		if errors.Is(err, node.ErrStale) {
			continue
		}
		if err != nil {
			return Provisioned{}, err
		}
		defer r.release(intent.UID)
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
	cert, err := r.Store.Certificate(ctx, n.Serial)
	if err != nil {
		return Provisioned{}, false, err
	}
	if cert.RequestID != request.ID {
		return Provisioned{}, false, fmt.Errorf("%w: %q holds %s, which another call issued", node.ErrCertificateExists, n.Certname, n.Serial)
	}
	var key bootstrap.Secret
	if o.request.CSR == nil {
		var known bool
		if key, known = r.answers.get(request.ID, n.Serial); !known {
			return Provisioned{}, false, nil
		}
	}
	b, err := r.bundle(ctx, n.Certname, []byte(cert.PEM), key)
	return Provisioned{n, b}, true, err
}

// mayBegin tells what a provision would be refused for.
func (r *Registry) mayBegin(ctx context.Context, n node.Node, o order) error {
	if err := r.addNode(ctx, &n, nil, nil, true); err != nil {
		return err
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

// beginNew commits a new registration with its intent, claimed.
func (r *Registry) beginNew(ctx context.Context, n node.Node, o *order, request *node.Request) (node.IssueIntent, error) {
	// Before a key is made for it, which may take seconds.
	if err := r.mayBegin(ctx, n, *o); err != nil {
		return node.IssueIntent{}, err
	}
	intent, err := r.prepare(ctx, o, n, request)
	if err != nil {
		return intent, err
	}
	intent.NewNode, intent.NewRequest = true, request != nil
	return intent, r.claimed(n, func() error { return r.addNode(ctx, &n, request, &intent, false) })
}

// beginReissue commits an intent for a live node, claimed, with the request
// where that is new. A certificate that the node has is revoked: its private
// key was lost with the answer.
func (r *Registry) beginReissue(ctx context.Context, old node.Node, o *order, request *node.Request, isNew bool) (node.IssueIntent, error) {
	if err := r.vet(ctx, *o); err != nil {
		return node.IssueIntent{}, err
	}
	intent, err := r.prepare(ctx, o, old, request)
	if err != nil {
		return intent, err
	}
	n := old.Clone()
	n.State, n.Serial, n.UpdatedAt = node.Issuing, "", r.Now().UTC()
	c := store.NewChange()
	if request != nil && isNew {
		intent.NewRequest = true
		n.Requests = append(n.Requests, request.ID)
		c.PutRequest(*request)
	}
	c.PutIntent(intent)
	if old.Serial != "" {
		if r.protects(old.Certname) {
			return intent, fmt.Errorf("%w: the answer for %q can't be had again, and %s is not revoked", node.ErrProtected, old.Certname, old.Serial)
		}
		if err := r.orderRevocation(ctx, c, old.Serial); err != nil {
			return intent, err
		}
	}
	c.PutNode(&old, n)
	err = r.claimed(n, func() error {
		_, err := r.Store.Commit(ctx, c)
		return err
	})
	r.Revocations.Kick()
	return intent, err
}

// claimed commits an intent in such a way that nothing settles it before the
// caller calls release; not needed after an error.
func (r *Registry) claimed(n node.Node, commit func() error) error {
	if !r.claim(n.UID) {
		return fmt.Errorf("%w: for %q", node.ErrIssuing, n.Certname)
	}
	err := commit()
	if err != nil {
		r.release(n.UID)
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
	hash, err := ca.KeyHash(o.request.PublicKey())
	if err != nil {
		return node.IssueIntent{}, err
	}
	o.request.Serial = r.Authority.NewSerial()
	intent := node.IssueIntent{
		UID:       n.UID,
		Certname:  n.Certname,
		Serial:    o.request.Serial,
		KeyHash:   hash,
		CallerKey: o.request.CSR != nil,
		CreatedAt: r.Now().UTC(),
	}
	if request != nil {
		intent.RequestID = request.ID
	}
	return intent, nil
}

// issue has the certificate of an intent signed, commits it and answers. On
// an error the intent is settled, now or in Run.
func (r *Registry) issue(ctx context.Context, intent node.IssueIntent, o order, request *node.Request) (Provisioned, error) {
	log := r.Log.WithFields(logrus.Fields{"certname": intent.Certname, "uid": intent.UID})
	cert, err := r.Authority.Sign(ctx, o.request)
	if err == nil {
		err = verify(cert, intent)
	}
	var n node.Node
	if err == nil {
		n, err = r.keep(ctx, intent, cert)
	}
	if err != nil {
		err = fmt.Errorf("issuing a certificate for %q: %w", intent.Certname, err)
		r.abandon(ctx, intent, cert)
		return Provisioned{}, err
	}
	log.WithField("serial", n.Serial).Info("certificate issued")
	var key bootstrap.Secret
	if o.request.Key != nil {
		if key, err = ca.MarshalKeyPEM(o.request.Key); err != nil {
			return Provisioned{}, err
		}
	}
	b, err := r.bundle(ctx, intent.Certname, encodeCertificate(cert), key)
	if err != nil {
		return Provisioned{}, err
	}
	if request != nil && key != nil {
		r.answers.put(request.ID, n.Serial, key)
	}
	return Provisioned{n, b}, nil
}

// verify makes sure that the certificate is for the intent's name and key.
func verify(cert *x509.Certificate, intent node.IssueIntent) error {
	hash, err := ca.KeyHash(cert.PublicKey)
	if err != nil {
		return err
	}
	if hash != intent.KeyHash || cert.Subject.CommonName != string(intent.Certname) {
		return fmt.Errorf("the authority returned a certificate for %q with another name or key", cert.Subject.CommonName)
	}
	return nil
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
		n = old.Clone()
		n.State, n.UpdatedAt = node.Provisioned, r.Now().UTC()
		n.Serial = node.SerialOf(cert.SerialNumber)
		c := store.NewChange()
		c.PutNode(&old, n)
		c.PutCertificate(record(intent, cert))
		c.RemoveIntent(open)
		n.Revision, err = r.Store.Commit(ctx, c)
		return err
	})
	return n, err
}

func record(intent node.IssueIntent, cert *x509.Certificate) node.Certificate {
	return node.Certificate{
		Serial:    node.SerialOf(cert.SerialNumber),
		Certname:  intent.Certname,
		UID:       intent.UID,
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		PEM:       string(encodeCertificate(cert)),
		RequestID: intent.RequestID,
	}
}

func encodeCertificate(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func (r *Registry) bundle(ctx context.Context, name node.Certname, certificate []byte, key bootstrap.Secret) (bootstrap.Bundle, error) {
	trust, err := r.Authority.Trust(ctx)
	if err != nil {
		return bootstrap.Bundle{}, fmt.Errorf("the CA's certificates and CRL: %w", err)
	}
	return bootstrap.Bundle{
		CertificatePEM: certificate,
		PrivateKeyPEM:  key,
		CAPEM:          trust.CertificatesPEM,
		CRLPEM:         trust.CRLsPEM,
		PuppetConf:     r.Puppet.PuppetConf(name),
	}, nil
}
