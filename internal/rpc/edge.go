package rpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
)

// edge is what every call passes. Before its message is read: who the caller
// is, and whether it may (access.go). Then a panic fails that call alone,
// errors become statuses, and what is the server's own fault is logged.
// Streams, which have no end of their own, end when the server is to stop.
type edge struct {
	log       logrus.FieldLogger
	strangers *sparing
	audit     *audit.Log
	now       func() time.Time
	serving   context.Context
	access    Access
	limits    Limits
	methods   map[string]bool // that the server has
}

// errStopping ends a stream, which would else hold up the server's stop.
var errStopping = fmt.Errorf("%w: espm stops; ask again when it is back, a watch from the last revision seen", node.ErrUnavailable)

func (e *edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	c := newCall(ctx, info.FullMethod, req)
	defer e.finish(c, &err)
	done, err := e.begin(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	defer done()
	if a, ok := admissionOf(ctx); ok {
		a.arrived()
	}
	if resp, err = handle(ctx, req); err != nil {
		return nil, err
	}
	return resp, e.revealed(ctx, c)
}

func (e *edge) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	c := newCall(ctx, info.FullMethod, nil)
	defer e.finish(c, &err)
	done, err := e.begin(ctx, info.FullMethod)
	if err != nil {
		return err
	}
	defer done()
	defer context.AfterFunc(e.serving, func() { cancel(errStopping) })()
	err = handle(srv, guarded{stream, ctx, c, e.limits.Stall})
	if errors.Is(context.Cause(ctx), errStopping) {
		return errStopping
	}
	return err
}

// guarded is a stream whose context ends when the server is to stop, that
// sends nothing to whom it may not any more, and waits for its reader for some time only.
type guarded struct {
	grpc.ServerStream
	ctx   context.Context
	call  *call
	stall time.Duration
}

func (s guarded) Context() context.Context { return s.ctx }

// RecvMsg keeps the first message, which says what the call is about.
func (s guarded) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil && s.call.req == nil {
		s.call.req = m
		if a, ok := admissionOf(s.ctx); ok {
			a.arrived()
		}
	}
	return err
}

// SendMsg looks whether the caller's credentials still hold. A reader that
// stalls loses its connection: nothing less ends a send that waits for it.
func (s guarded) SendMsg(m any) error {
	a, ok := admissionOf(s.ctx)
	if !ok {
		return node.ErrUnauthenticated
	}
	if err := a.valid(); err != nil {
		return fmt.Errorf("%w: %w", node.ErrUnauthenticated, err)
	}
	if s.stall > 0 {
		defer time.AfterFunc(s.stall, func() { a.conn.Close() }).Stop()
	}
	return s.ServerStream.SendMsg(m)
}

// call is what the edge knows of one. The caller is known as far as it showed
// itself: a stranger has no name and no role, but a peer and a method.
type call struct {
	caller node.Caller
	method string // "SERVICE/METHOD"
	req    any    // of a stream, its first message; nil until it came
}

func newCall(ctx context.Context, fullMethod string, req any) *call {
	c := &call{method: strings.TrimPrefix(fullMethod, "/"), req: req}
	if _, ok := admissionOf(ctx); ok {
		c.caller = node.CallerOf(ctx)
	}
	return c
}

func (e *edge) finish(c *call, err *error) {
	if recover() != nil {
		*err = e.panicked(c.method)
		e.note(c, *err)
		return
	}
	*err = e.answer(c, *err)
}

// panicked does not tell the value of the panic: it may hold what must not be logged.
func (e *edge) panicked(method string) error {
	e.log.WithFields(logrus.Fields{"method": method, "stack": string(debug.Stack())}).Error("a call panicked")
	return status.Error(codes.Internal, "the server failed on this call; its log says where")
}

// answer is the one place that every call's error passes on its way out, of
// those that were not let in, too. What was refused has its audit line.
func (e *edge) answer(c *call, err error) error {
	out := toStatus(strange(err))
	e.note(c, out)
	switch code := status.Code(out); code {
	case codes.Internal, codes.Unknown, codes.Unavailable:
		e.log.WithField("method", c.method).WithError(out).Error("a call failed")
	case codes.Unauthenticated, codes.PermissionDenied:
		e.strangers.Warn("a call was refused", logrus.Fields{"method": node.Shorten(c.method, maxMethod), "principal": c.caller.Name, "role": c.caller.Role, "peer": c.caller.Peer, "reason": err.Error()})
	case codes.OK:
	default:
		e.log.WithField("method", c.method).WithError(out).Debug("a call was refused")
	}
	return out
}

// maxMethod bounds a method's name in the log, which a stranger chooses.
const maxMethod = 100

// strange tells a stranger nothing but that it is one: not what was wrong.
func strange(err error) error {
	if errors.Is(err, node.ErrUnauthenticated) {
		return node.ErrUnauthenticated
	}
	return err
}
