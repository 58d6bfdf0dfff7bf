package rpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/node"
)

// edge is what every call passes. Before its message is read: who the caller
// is, and whether it may (access.go). Then a panic fails that call alone,
// errors become statuses, and what is the server's own fault is logged.
// Streams, which have no end of their own, end when the server is to stop.
type edge struct {
	log       logrus.FieldLogger
	strangers *sparing
	serving   context.Context
	access    Access
	limits    Limits
	methods   map[string]bool // that the server has
}

// errStopping ends a stream, which would else hold up the server's stop.
var errStopping = fmt.Errorf("%w: espm stops; ask again when it is back, a watch from the last revision seen", node.ErrUnavailable)

func (e *edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer e.finish(ctx, info.FullMethod, &err)
	done, err := e.begin(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	defer done()
	return handle(ctx, req)
}

func (e *edge) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer e.finish(ctx, info.FullMethod, &err)
	done, err := e.begin(ctx, info.FullMethod)
	if err != nil {
		return err
	}
	defer done()
	defer context.AfterFunc(e.serving, func() { cancel(errStopping) })()
	err = handle(srv, guarded{stream, ctx, e.limits.Stall})
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
	stall time.Duration
}

func (s guarded) Context() context.Context { return s.ctx }

// SendMsg looks whether the caller's credentials still hold. A reader that
// stalls loses its connection: nothing less ends a send that waits for it.
func (s guarded) SendMsg(m any) error {
	a, ok := admissionOf(s.ctx)
	if !ok {
		return node.ErrUnauthenticated
	}
	if err := a.valid(s.ctx); err != nil {
		return fmt.Errorf("%w: %w", node.ErrUnauthenticated, err)
	}
	if s.stall > 0 {
		defer time.AfterFunc(s.stall, func() { a.conn.Close() }).Stop()
	}
	return s.ServerStream.SendMsg(m)
}

func (e *edge) finish(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		*err = e.panicked(method)
		return
	}
	*err = e.answer(node.CallerOf(ctx), method, *err)
}

// panicked does not tell the value of the panic: it may hold what must not be logged.
func (e *edge) panicked(method string) error {
	e.log.WithFields(logrus.Fields{"method": method, "stack": string(debug.Stack())}).Error("a call panicked")
	return status.Error(codes.Internal, "the server failed on this call; its log says where")
}

// answer is the one place that every call's error passes on its way out, of
// those that were not let in, too. The caller is known as far as it showed
// itself: a stranger has no name and no role, but a peer and a method.
func (e *edge) answer(c node.Caller, method string, err error) error {
	out := toStatus(strange(err))
	switch code := status.Code(out); code {
	case codes.Internal, codes.Unknown, codes.Unavailable:
		e.log.WithField("method", method).WithError(out).Error("a call failed")
	case codes.Unauthenticated, codes.PermissionDenied:
		e.strangers.Warn("a call was refused", logrus.Fields{"method": cut(method, maxMethod), "principal": c.Name, "role": c.Role, "peer": c.Peer, "reason": err.Error()})
	case codes.OK:
	default:
		e.log.WithField("method", method).WithError(out).Debug("a call was refused")
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
