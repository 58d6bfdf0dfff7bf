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

// edge wraps every call. The gate lets a call in before the message is read (access.go), and records any failure. A
// panic fails only the one call. Errors become statuses, and the server's own faults are logged. A stream without an
// end of its own ends when the server stops.
type edge struct {
	log      logrus.FieldLogger
	gate     *auth.Gate
	audit    *audit.Log
	now      func() time.Time
	serving  context.Context
	limits   Limits
	methods  map[string]bool // of the server
	underway underway
}

// errStopping ends a stream that would delay the server's stop.
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
		return nil, err // the caller no longer waits: do not start the work
	}
	if resp, err = handle(ctx, req); err != nil {
		return nil, err
	}
	return resp, e.auditReveal(ctx, c)
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

// guarded is a stream whose context ends when the server stops. A caller whose credentials have become invalid is sent
// nothing more. A caller that does not read is disconnected after stall.
type guarded struct {
	grpc.ServerStream
	ctx context.Context
	admission
	call  *call
	stall time.Duration
}

func (s guarded) Context() context.Context { return s.ctx }

// RecvMsg keeps the first message for the audit line.
func (s guarded) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil && s.call.req == nil {
		s.call.req = m
		s.arrived()
	}
	return err
}

// SendMsg checks the caller's credentials before it sends. If the reader stalls, SendMsg closes the connection: nothing
// else ends a blocked send.
func (s guarded) SendMsg(m any) error {
	if err := s.Valid(); err != nil {
		return err
	}
	if s.stall > 0 {
		defer time.AfterFunc(s.stall, func() { s.conn.Close() }).Stop()
	}
	return s.ServerStream.SendMsg(m)
}

// call is the edge's record of one call. The field caller is zero if the gate did not let the call in.
type call struct {
	caller node.Caller
	method string // "SERVICE/METHOD"
	req    any    // of a stream: the first message, nil until it has arrived
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

// panicked does not log the value of the panic: the value may contain a secret.
func (e *edge) panicked(method string) error {
	e.log.WithFields(logrus.Fields{"method": method, "stack": string(debug.Stack())}).Error("a call panicked")
	return errPanicked
}

var errPanicked = status.Error(codes.Internal, "the server failed on this call: find the cause in espm's log")

// answer reports an error to the gate, and returns the status for the caller. Every error of a call that was let in
// passes through answer.
func (e *edge) answer(c *call, err error) error {
	if err == nil {
		return nil
	}
	about := func(l *node.AuditLine) { about(l, c.req) }
	return e.statusOf(c.method, e.gate.Failed(auth.Failure{Caller: c.caller, Method: c.method, Err: err, Outcome: outcome(err), About: about}))
}

// statusOf turns an error from the gate into a status, and logs the server's own faults.
func (e *edge) statusOf(method string, err error) error {
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
