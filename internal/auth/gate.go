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

// GateOptions are the parts of a gate.
type GateOptions struct {
	Local      Local
	Principals Principals
	Tokens     *Tokens
	Limits     *Limits
	Trust      *Trust // nil: no certificate is accepted
	// Refused returns an error if a certificate is refused by its serial number and issuer. The gate calls Refused
	// for every call and every message of a stream, so Refused must answer from memory.
	// A gate without Refused accepts no certificate.
	Refused  func(cert, issuer *x509.Certificate) error
	Refusals Refusals
	Now      func() time.Time
	Log      logrus.FieldLogger
}

// Gate decides which callers are let in, for every transport. The gate identifies peers, checks the table
// of permissions, counts limits, and logs and audits refusals. A transport only translates.
//
// No call reads the store or a file. Each new connection to the local socket looks up the name of its user once.
// All methods may be called at once.
type Gate struct {
	o          GateOptions
	principals atomic.Pointer[Principals] // never nil
	strangers  *LimitedLog
}

// NewGate returns a gate.
func NewGate(o GateOptions) *Gate {
	if o.Refused == nil {
		o.Refused = func(_, _ *x509.Certificate) error {
			return errors.New("no list of refused serial numbers is configured")
		}
	}
	g := &Gate{o: o, strangers: NewLimitedLog(o.Log)}
	g.SetPrincipals(o.Principals)
	return g
}

// SetPrincipals replaces GateOptions.Principals for every later call. If the role or the grant of a caller has
// changed, the caller's earlier admissions become invalid.
func (g *Gate) SetPrincipals(p Principals) { g.principals.Store(&p) }

// Request describes a call whose message is not read yet.
type Request struct {
	Peer          *Peer    // nil: the connection did not come through the gate
	Method        string   // as the table of permissions spells it
	Authorization []string // the values of the header authorization

	// Unserved is set if the transport has no such method. The gate lets a caller with a role pass, and the transport
	// returns the error. A caller without a role is refused, and so does not learn which methods exist.
	Unserved bool
}

// Admission is the gate's permission for one call.
type Admission struct {
	caller node.Caller
	valid  func() error
}

// Caller returns the caller, with the method of the call.
func (a *Admission) Caller() node.Caller { return a.caller }

// Valid returns an error if the caller's credentials are no longer accepted. A stream outlives the check of Admit,
// and has to call Valid again. The error wraps node.ErrUnauthenticated.
func (a *Admission) Valid() error {
	if err := a.valid(); err != nil {
		return fmt.Errorf("%w: %w", node.ErrUnauthenticated, err)
	}
	return nil
}

// Admit lets a call in, or refuses it, before the message is read. Admit passes a refusal to Failed, so the caller may
// be told the error: node.ErrUnauthenticated, node.ErrNotPermitted or a *node.LimitError.
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

// identify returns the caller of a request. A token that was sent must be valid. Without a token, the connection
// identifies the caller. The error is for the log only. The admission is never nil: with an error, it has the
// known part of the caller.
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

// bearer returns the token of a call, and whether one was sent (RFC 6750 section 2.1).
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

// permit checks an identified caller against the table of permissions.
func permit(c node.Caller, unserved bool) error {
	switch {
	case c.Role == "":
		return node.ErrNotPermitted // without the method's name: the caller may be a stranger with a certificate
	case unserved, Permits(c.Method, c):
		return nil
	case permissions[c.Method].local && !c.Local && slices.Contains(permissions[c.Method].roles, c.Role):
		return fmt.Errorf("%w: %s is for callers on the local socket without a token: call it on espm's host", node.ErrNotPermitted, c.Method)
	default:
		return fmt.Errorf("%w: %s may not call %s", node.ErrNotPermitted, c.Role, c.Method)
	}
}

// Begin checks, before the work of a call starts, that the call was let in for this method. If the method provisions,
// Begin counts one open provision until done is called. Pass the error to Failed, like an error of the work itself.
func (g *Gate) Begin(a *Admission, method string) (done func(), err error) {
	if !a.begins(method) {
		return nil, node.ErrNotPermitted
	}
	if permissions[method].provision {
		return g.o.Limits.Provision(a.caller)
	}
	return func() {}, nil
}

// Open is Begin for a stream, and counts one open stream until done is called.
func (g *Gate) Open(a *Admission, method string) (done func(), err error) {
	if !a.begins(method) {
		return nil, node.ErrNotPermitted
	}
	return g.o.Limits.Stream(a.caller)
}

func (a *Admission) begins(method string) bool {
	return a != nil && a.caller.Method == method && Permits(method, a.caller)
}
