package auth

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/node"
)

// GateOptions are a gate's parts.
type GateOptions struct {
	Local      Local
	Principals Principals
	Tokens     *Tokens
	Limits     *Limits
	Trust      *Trust // nil: no certificate is accepted
	// Refused says why a certificate is refused by its serial number and issuer, nil where it is
	// not. It is asked at every call, and for every message of a stream, so it answers from memory.
	// Without it no certificate is accepted.
	Refused  func(cert, issuer *x509.Certificate) error
	Refusals Refusals
	Now      func() time.Time
	Log      logrus.FieldLogger
}

// Gate decides who is let in, whatever the transport: it identifies peers, holds callers to the table
// of permissions, counts their limits, and logs and audits refusals. A transport only
// translates. The gate works in memory: a call costs no read of the store or of a file. A new connection
// to the local socket costs one: the name of its user.
// All methods may be called at once.
type Gate struct {
	o          GateOptions
	principals atomic.Pointer[Principals] // never nil
	strangers  *SparingLog
}

// NewGate returns a gate.
func NewGate(o GateOptions) *Gate {
	if o.Refused == nil {
		o.Refused = func(_, _ *x509.Certificate) error {
			return errors.New("no list of refused serial numbers is configured")
		}
	}
	g := &Gate{o: o, strangers: NewSparingLog(o.Log)}
	g.SetPrincipals(o.Principals)
	return g
}

// SetPrincipals replaces GateOptions.Principals. It holds for every call that is admitted from then on. The admission
// of a caller whose role or grant has changed is no longer valid.
func (g *Gate) SetPrincipals(p Principals) { g.principals.Store(&p) }

// Request is what a transport knows of a call before it reads the call's message.
type Request struct {
	Peer          *Peer    // nil: the connection did not come through the gate
	Method        string   // as the table of permissions spells it
	Authorization []string // the values of the header of that name

	// Unserved is set where the transport has no such method. Callers with a role pass then,
	// and the transport says so itself. Strangers do not learn it.
	Unserved bool
}

// Admission is that a call was let in.
type Admission struct {
	caller node.Caller
	valid  func() error
}

// Caller is who calls, with the method.
func (a *Admission) Caller() node.Caller { return a.caller }

// Valid checks again whether the caller's credentials hold, for work that lasts longer than a
// call. The error wraps node.ErrUnauthenticated.
func (a *Admission) Valid() error {
	if err := a.valid(); err != nil {
		return fmt.Errorf("%w: %w", node.ErrUnauthenticated, err)
	}
	return nil
}

// Admit lets a call in, or refuses it before its message is read. A refusal is logged and audited
// already, and its error is what the caller may be told: node.ErrUnauthenticated,
// node.ErrNotPermitted or a *node.LimitError.
func (g *Gate) Admit(r Request) (*Admission, error) {
	a, err := g.identify(r)
	a.caller.Method = r.Method
	if err != nil {
		err = fmt.Errorf("%w: %w", node.ErrUnauthenticated, err)
	} else if err = permit(a.caller, r.Unserved); err == nil {
		err = g.o.Limits.Request(a.caller)
	}
	if err != nil {
		return nil, g.Failed(Failure{Caller: a.caller, Method: r.Method, Err: err, Outcome: node.ErrorReason(err)})
	}
	return a, nil
}

// identify returns who calls: by its token where it sends one, which then has to be good, else
// by what the connection says. Its error is for the log. The admission is never nil, and has
// then what is known of the caller.
func (g *Gate) identify(r Request) (*Admission, error) {
	a := &Admission{}
	if r.Peer == nil {
		return a, errors.New("the connection was not set up by espm")
	}
	a.caller.Peer, a.valid = r.Peer.caller.Peer, r.Peer.Check
	if err := r.Peer.Check(); err != nil {
		return a, err
	}
	text, sent, err := bearer(r.Authorization)
	switch {
	case err != nil:
		return a, err
	case sent:
		t, err := g.o.Tokens.Authenticate(text)
		if err != nil {
			return a, err
		}
		a.caller.Name, a.caller.Role, a.caller.Grant = t.Principal(), t.Role, t.Grant
		a.valid = func() error { _, err := g.o.Tokens.Authenticate(text); return err }
		return a, nil
	}
	c := r.Peer.now()
	if c.Name == "" {
		return a, errors.New("neither a token nor a certificate with a name was shown")
	}
	a.caller = c
	a.valid = func() error {
		if !r.Peer.now().Same(c) {
			return errPrincipalChanged
		}
		return r.Peer.Check()
	}
	return a, nil
}

// bearer returns the token of a call, if it has one (RFC 6750 section 2.1).
func bearer(values []string) (text string, sent bool, err error) {
	if len(values) == 0 {
		return "", false, nil
	}
	scheme, text, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || !strings.EqualFold(scheme, "bearer") {
		return "", true, errors.New("the header authorization is not one bearer token")
	}
	return text, true, nil
}

// permit holds a known caller to the table.
func permit(c node.Caller, unserved bool) error {
	switch {
	case c.Role == "":
		return node.ErrNotPermitted // the method is not named: the caller may be a stranger with a certificate
	case unserved, Permits(c.Method, c):
		return nil
	case permissions[c.Method].local && !c.Local && slices.Contains(permissions[c.Method].roles, c.Role):
		return fmt.Errorf("%w: %s is for callers on the local socket without a token: call it on espm's host", node.ErrNotPermitted, c.Method)
	default:
		return fmt.Errorf("%w: %s may not call %s", node.ErrNotPermitted, c.Role, c.Method)
	}
}

// Begin checks once more, when the work of a call is to start, that the call was let in for this
// method, and counts provisions that are under way until done is called. The error is for
// Failed, as that of the work itself.
func (g *Gate) Begin(a *Admission, method string) (done func(), err error) {
	if !a.begins(method) {
		return nil, node.ErrNotPermitted
	}
	if permissions[method].provision {
		return g.o.Limits.Provision(a.caller)
	}
	return func() {}, nil
}

// Open is Begin for a stream, which may have no end of its own. It counts streams that are open until done is called.
func (g *Gate) Open(a *Admission, method string) (done func(), err error) {
	if !a.begins(method) {
		return nil, node.ErrNotPermitted
	}
	return g.o.Limits.Stream(a.caller)
}

func (a *Admission) begins(method string) bool {
	return a != nil && a.caller.Method == method && Permits(method, a.caller)
}
