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
	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
)

// edge is what every call passes. The gate lets the call in before its message is
// read (access.go), and hears how the call ended. A panic fails that call alone,
// errors become statuses, and what is the server's own fault is logged.
// Streams, which have no end of their own, end when the server is to stop.
type edge struct {
	log      logrus.FieldLogger
	gate     *auth.Gate
	audit    *audit.Log
	now      func() time.Time
	serving  context.Context
	limits   Limits
	methods  map[string]bool // that the server has
	underway underway
}

// errStopping ends a stream, which would else hold up the server's stop.
var errStopping = fmt.Errorf("%w: espm is stopping: retry after the restart, and resume a watch from the last revision received", node.ErrUnavailable)

func (e *edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	c := newCall(ctx, info.FullMethod, req)
	defer e.finish(c, &err)
	defer e.underway.enter(c, nil)()
	a := admissionOf(ctx)
	done, err := e.gate.Begin(a.Admission, c.method)
	if err != nil {
		return nil, err
	}
	defer done()
	a.arrived()
	if err := ctx.Err(); err != nil {
		return nil, err // nobody waits for the answer: the work is not begun
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
	a := admissionOf(ctx)
	done, err := e.gate.Open(a.Admission, c.method)
	if err != nil {
		return err
	}
	defer done()
	defer e.underway.enter(c, &openStream{a.Valid, cancel})()
	defer context.AfterFunc(e.serving, func() { cancel(errStopping) })()
	err = handle(srv, guarded{stream, ctx, a, c, e.limits.Stall})
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return err
}

// guarded is a stream whose context ends when the server is to stop, that
// sends nothing to whom it may not any more, and waits for its reader for some time only.
type guarded struct {
	grpc.ServerStream
	ctx context.Context
	admission
	call  *call
	stall time.Duration
}

func (s guarded) Context() context.Context { return s.ctx }

// RecvMsg keeps the first message, which says what the call is about.
func (s guarded) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil && s.call.req == nil {
		s.call.req = m
		s.arrived()
	}
	return err
}

// SendMsg looks whether the caller's credentials still hold. A reader that
// stalls loses its connection: nothing less ends a send that waits for it.
func (s guarded) SendMsg(m any) error {
	if err := s.Valid(); err != nil {
		return err
	}
	if s.stall > 0 {
		defer time.AfterFunc(s.stall, func() { s.conn.Close() }).Stop()
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
	if a := admissionOf(ctx); a.Admission != nil {
		c.caller = a.Caller()
	}
	return c
}

func (e *edge) finish(c *call, err *error) {
	if recover() != nil {
		*err = e.panicked(c.method)
	}
	*err = e.answer(c, *err)
}

// panicked does not tell the value of the panic: it may hold what must not be logged.
func (e *edge) panicked(method string) error {
	e.log.WithFields(logrus.Fields{"method": method, "stack": string(debug.Stack())}).Error("a call panicked")
	return errPanicked
}

var errPanicked = status.Error(codes.Internal, "the server failed on this call: find the cause in espm's log")

// answer is the one place that the error of every call which was let in passes on its way
// out. The gate hears of it.
func (e *edge) answer(c *call, err error) error {
	if err == nil {
		return nil
	}
	about := func(l *node.AuditLine) { about(l, c.req) }
	return e.told(c.method, e.gate.Failed(auth.Failure{Caller: c.caller, Method: c.method, Err: err, Outcome: outcome(err), About: about}))
}

// told turns an error that the gate has heard of into a status, and logs what is the server's own fault.
func (e *edge) told(method string, err error) error {
	out := toStatus(err)
	switch code := status.Code(out); {
	case errors.Is(err, errPanicked):
	case code == codes.Internal, code == codes.Unknown, code == codes.Unavailable:
		e.log.WithField("method", method).WithError(out).Error("a call failed")
	case code != codes.Unauthenticated && code != codes.PermissionDenied:
		e.log.WithField("method", method).WithError(out).Debug("a call was refused")
	}
	return out
}
