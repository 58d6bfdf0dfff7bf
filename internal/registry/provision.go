package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// issueTimeout bounds an issue. An issue does not end with its caller's context, so it needs its own bound.
const issueTimeout = 2 * time.Minute

// The stages of an issue; Options.Stage is given their names.
const (
	stageRegistered = "registered" // the key is generated, the intent committed
	stageSigned     = "signed"     // by the authority
	stageCommitted  = "committed"  // the certificate is in the store
)

// Stages returns the names of all stages.
func Stages() []string { return []string{stageRegistered, stageSigned, stageCommitted} }

// issuer issues certificates, for new registrations and for live ones without a certificate.
type issuer struct {
	core
	authority signer
	keys      Keys
	puppet    bootstrap.Server
	algorithm ca.KeyAlgorithm                        // Options.Algorithm
	stage     func(stage string, took time.Duration) // Options.Stage

	view          *view
	names         *certnames
	registrations *registrations
	settlement    *settlement
	fence         *fence
	orders        *orders
	terminate     func(ctx context.Context, n node.Node, reason node.Reason, why string) (Terminated, error)

	shared  singleflight.Group // running issues, by request id
	calls   sync.WaitGroup     // running calls with a request id; a call whose caller has gone counts until its issue ends
	answers answers
}

// signer is the part of the authority that an issue needs.
type signer interface {
	Check(ctx context.Context, r ca.Request) (*x509.Certificate, error)
	NewSerial() node.Serial
	Sign(ctx context.Context, r ca.Request) (*x509.Certificate, error)
	Trust(ctx context.Context) (ca.Trust, error)
	Traits() ca.Traits
}

// Spec describes the certificate to issue.
type Spec struct {
	CSRPEM       []byte // the caller's CSR; if empty, espm generates the key
	KeyAlgorithm string // if empty, the default
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

// parse checks a Spec. Its errors are *node.InvalidError.
func (i *issuer) parse(name node.Certname, s Spec) (order, error) {
	o := order{algorithm: i.algorithm}
	var algErr error
	if s.KeyAlgorithm != "" {
		o.algorithm, algErr = ca.ParseKeyAlgorithm(s.KeyAlgorithm)
	}
	if s.KeyAlgorithm != "" && len(s.CSRPEM) > 0 {
		algErr = node.Invalid("key_algorithm", "must be empty with a CSR, which brings its own key")
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

// Provision registers and classifies a node and issues its certificate. If one of the three fails, none is
// done. The package comment says what a crash leaves. Provision does not stop when ctx is cancelled, as the
// caller may ask for the answer again. Errors: those of Register, node.ErrUnavailable, and node.ErrProtected if
// a protected name has a launch deadline.
func (i *issuer) Provision(ctx context.Context, n node.Node, s Spec, requestID string, validateOnly bool) (Provisioned, error) {
	o, specErr := i.parse(n.Certname, s)
	if err := node.Join(n.Validate(), CheckRequestID(requestID), specErr); err != nil {
		return Provisioned{}, err
	}
	if err := i.names.mayOrder(ctx, &o); err != nil {
		return Provisioned{}, err
	}
	if n.ClaimWithin > 0 && i.names.protection(n.Certname) != "" {
		return Provisioned{}, fmt.Errorf("%w: %q is never terminated, so it can't have a launch deadline", node.ErrProtected, n.Certname)
	}
	n, err := i.newNode(ctx, n).BeginIssue(i.now())
	if err != nil {
		return Provisioned{}, err
	}
	request, err := newRequest(ctx, n, requestID, "provision", n.Spec(), s)
	if err != nil {
		return Provisioned{}, err
	}
	if validateOnly {
		if earlier, err := i.registrations.earlier(ctx, request); err != nil || earlier != nil {
			return Provisioned{Node: earlierOr(earlier, n)}, err
		}
		return Provisioned{Node: n}, i.mayBegin(ctx, n, o)
	}
	one := &issuance{issuer: i, caller: ctx, order: o, request: request}
	work := func(ctx context.Context) (Provisioned, error) {
		return one.run(ctx, func(ctx context.Context) error { return one.beginNew(ctx, n) })
	}
	undo := func(ctx context.Context) error {
		now, live, err := i.live(ctx, n.Certname)
		if err != nil || !live || now.UID != n.UID {
			return err
		}
		_, err = i.terminate(ctx, now, "", "")
		i.orders.queue.Kick()
		return err
	}
	return i.shareCall(ctx, request, work, undo)
}

func earlierOr(earlier *node.Node, n node.Node) node.Node {
	if earlier != nil {
		return *earlier
	}
	return n
}

// Issue issues a certificate for a registered node that has none. If uid is not empty, it must be the uid of
// the live registration. Errors: node.ErrInvalid, ErrNotPermitted, ErrNodeNotFound, ErrUIDMismatch,
// ErrCertificateExists, ErrIssuing, ErrRequestReused, ErrRequestSpent, ErrUnavailable.
func (i *issuer) Issue(ctx context.Context, name node.Certname, uid node.UID, s Spec, requestID string, validateOnly bool) (Provisioned, error) {
	o, specErr := i.parse(name, s)
	if err := node.Join(CheckRequestID(requestID), specErr); err != nil {
		return Provisioned{}, err
	}
	n, err := i.view.node(ctx, name)
	if err != nil {
		return Provisioned{}, err
	}
	if err := i.names.mayOrder(ctx, &o); err != nil {
		return Provisioned{}, err
	}
	if uid != "" && n.UID != uid {
		return Provisioned{}, fmt.Errorf("%w: %q is registration %s now", node.ErrUIDMismatch, name, n.UID)
	}
	request, err := newRequest(ctx, n, requestID, "issue", uid, s)
	if err != nil {
		return Provisioned{}, err
	}
	if validateOnly {
		if earlier, err := i.registrations.earlier(ctx, request); err != nil || earlier != nil {
			return Provisioned{Node: earlierOr(earlier, n)}, err
		}
		_, err := n.BeginIssue(i.now())
		return Provisioned{Node: n}, node.Join(err, i.vet(ctx, o))
	}
	one := &issuance{issuer: i, caller: ctx, order: o, request: request}
	work := func(ctx context.Context) (Provisioned, error) {
		return one.run(ctx, func(ctx context.Context) error {
			now, err := i.view.node(ctx, name)
			if err != nil {
				return err
			}
			if now.UID != n.UID {
				return fmt.Errorf("%w: %q is registration %s now", node.ErrUIDMismatch, name, now.UID)
			}
			if _, err := now.BeginIssue(i.now()); err != nil {
				return err
			}
			return one.beginAgain(ctx, now, true)
		})
	}
	return i.shareCall(ctx, request, work, func(ctx context.Context) error { return i.orders.revokeLife(ctx, name, n.UID) })
}

// shareCall calls do once for all concurrent calls of one caller with the same request id. do does not stop
// when a caller has gone, as the caller may ask for the answer again. A caller without a request id can't ask
// again, so shareCall then calls undo.
func (i *issuer) shareCall(ctx context.Context, request *node.Request, do func(context.Context) (Provisioned, error), undo func(context.Context) error) (Provisioned, error) {
	detached := func() (p Provisioned, err error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), issueTimeout)
		defer cancel()
		defer func() {
			if recover() != nil { // singleflight would end the process. The value is not logged: it may hold a secret
				i.log.WithField("stack", string(debug.Stack())).Error("issuing a certificate panicked")
				err = errors.New("espm failed on this call by a fault of its own; see espm's log")
				i.settlement.settleSoon()
			}
		}()
		return do(ctx)
	}
	if request == nil {
		p, err := detached()
		if err == nil && ctx.Err() != nil {
			gone := fmt.Errorf("the call for %q ended before its answer: %w", p.Node.Certname, ctx.Err())
			return Provisioned{}, errors.Join(gone, retry(func() error { return undo(context.WithoutCancel(ctx)) }))
		}
		return p, err
	}
	i.calls.Add(1)
	// The key has the hash of the content: a call with other content must not get this call's answer.
	done := i.shared.DoChan(request.Key()+" "+request.Hash, func() (any, error) { return detached() })
	select {
	case res := <-done:
		i.calls.Done()
		return res.Val.(Provisioned), res.Err
	case <-ctx.Done():
		go func() {
			<-done
			i.calls.Done()
		}()
		return Provisioned{}, fmt.Errorf("the issue for %q continues after its call ended; repeat the call with the same request_id: %w", request.Certname, ctx.Err())
	}
}

// Wait waits for the issues that still run although their callers have gone. No other call may run meanwhile.
func (i *issuer) Wait() { i.calls.Wait() }
