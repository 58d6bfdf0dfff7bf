package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
)

// Access is whom the server lets in, and how far.
type Access struct {
	Local      auth.Local
	Trust      *auth.Trust // nil: no network listener
	Principals auth.Principals
	Tokens     *auth.Tokens
	Records    TokenRecords
	Limits     *auth.Limits
}

// admission is that a call was let in.
type admission struct {
	method string
	conn   *conn
	valid  func() error // whether the caller's credentials still hold

	arrived func() bool // the call's first message is there
}

type admissionKey struct{}

func admissionOf(ctx context.Context) (admission, bool) {
	a, ok := ctx.Value(admissionKey{}).(admission)
	return a, ok
}

// tap decides on a call when its headers are there, before a message is read
// or a handler's goroutine is started, so that a stranger costs little. It
// runs in the connection's own goroutine.
func (e *edge) tap(ctx context.Context, info *tap.Info) (_ context.Context, err error) {
	method := strings.TrimPrefix(info.FullMethodName, "/")
	c, a := node.Caller{Method: method}, admission{method: method}
	defer func() {
		if p := recover(); p != nil {
			err = e.panicked(method)
		} else if err != nil {
			err = e.answer(&call{caller: c, method: method}, err)
		}
		if err != nil && a.conn != nil {
			a.conn.refuse(e.limits.Refused)
		}
	}()
	if c, a.conn, a.valid, err = e.identify(ctx, info.Header); err != nil {
		c.Method = method
		return ctx, fmt.Errorf("%w: %w", node.ErrUnauthenticated, err)
	}
	c.Method = method
	if err := e.permit(c); err != nil {
		return ctx, err
	}
	a.conn.trusted.Store(true)
	if err := e.access.Limits.Request(c); err != nil {
		return ctx, err
	}
	ctx, a.arrived = e.awaited(ctx)
	return context.WithValue(node.WithCaller(ctx, c), admissionKey{}, a), nil
}

// awaited ends a call whose first message is not there in time. gRPC reads that of a
// unary call before it calls any of ours, and would wait for ever.
func (e *edge) awaited(ctx context.Context) (_ context.Context, arrived func() bool) {
	if e.limits.Message <= 0 {
		return ctx, func() bool { return true }
	}
	ctx, end := context.WithCancel(ctx)
	return ctx, time.AfterFunc(e.limits.Message, end).Stop
}

// identify returns who calls: by its token where it sends one, which then
// has to be good, else by what the connection says. Its error is for the log.
func (e *edge) identify(ctx context.Context, header metadata.MD) (node.Caller, *conn, func() error, error) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return node.Caller{}, nil, nil, errors.New("the connection is not known")
	}
	info, ok := p.AuthInfo.(peerInfo)
	if !ok {
		return node.Caller{}, nil, nil, errors.New("the connection was not set up by espm")
	}
	nobody := node.Caller{Peer: info.caller.Peer}
	certificate := func() error { return nil }
	if proof := info.conn.proof; proof != nil {
		certificate = func() error { return proof.Check() }
		if err := proof.Check(); err != nil {
			return nobody, info.conn, nil, err
		}
	}
	text, sent, err := bearer(header)
	switch {
	case err != nil:
		return nobody, info.conn, nil, err
	case sent:
		t, err := e.access.Tokens.Authenticate(text)
		if err != nil {
			return nobody, info.conn, nil, err
		}
		c := node.Caller{Name: t.Principal(), Role: t.Role, Grant: t.Grant, Peer: info.caller.Peer}
		valid := func() error {
			_, err := e.access.Tokens.Authenticate(text)
			return err
		}
		return c, info.conn, valid, nil
	case info.caller.Name == "":
		return nobody, info.conn, nil, errors.New("neither a token nor a certificate with a name was shown")
	}
	return info.caller, info.conn, certificate, nil
}

// bearer returns the token of a call's metadata, if it has one (RFC 6750 section 2.1).
func bearer(header metadata.MD) (text string, sent bool, err error) {
	values := header.Get("authorization")
	if len(values) == 0 {
		return "", false, nil
	}
	scheme, text, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || !strings.EqualFold(scheme, "bearer") {
		return "", true, errors.New("the metadata authorization is not one bearer token")
	}
	return text, true, nil
}

// permit holds a known caller to the table. What the server does not have is
// for gRPC to answer, to those who may do anything at all.
func (e *edge) permit(c node.Caller) error {
	switch {
	case c.Role == "":
		return node.ErrNotPermitted // not who was asked for: it may be a stranger with a certificate
	case auth.Permits(c.Method, c.Role), !e.methods[c.Method]:
		return nil
	default:
		return fmt.Errorf("%w: %s may not call %s", node.ErrNotPermitted, c.Role, c.Method)
	}
}

// provisions are the methods that are limited in how many are under way.
var provisions = map[string]bool{
	"espm.v1.NodeService/ProvisionNode":                 true,
	"espm.v1.CertificateService/PresignCertificate":     true,
	"espm.v1.CertificateService/SignCertificateRequest": true,
}

// begin looks at a call once more when its handler is to start: whatever way
// it came, it was let in for this method.
func (e *edge) begin(ctx context.Context, fullMethod string) (done func(), err error) {
	method, c := strings.TrimPrefix(fullMethod, "/"), node.CallerOf(ctx)
	if a, ok := admissionOf(ctx); !ok || a.method != method || c.Method != method || !auth.Permits(method, c.Role) {
		return nil, node.ErrNotPermitted
	}
	if provisions[method] {
		return e.access.Limits.Provision(c)
	}
	return func() {}, nil
}

// methods are all that a server has, as the table spells them.
func methods(s *grpc.Server) map[string]bool {
	all := map[string]bool{}
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			all[service+"/"+m.Name] = true
		}
	}
	return all
}
