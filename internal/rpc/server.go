// Package rpc serves espm's gRPC API: thin handlers over package registry,
// and the one table that turns its errors into gRPC's.
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
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// maxMessage is the largest request taken, in bytes. It is above what a valid
// one has, so that the answer to a larger classification names the field.
const maxMessage = 16 << 20

// NewServer returns a gRPC server with all of espm's services, health and
// reflection. Its watches end when ctx is done; the rest is for GracefulStop.
func NewServer(ctx context.Context, r *registry.Registry, now func() time.Time, log logrus.FieldLogger, more ...grpc.ServerOption) *grpc.Server {
	e := edge{log, ctx}
	s := grpc.NewServer(append(more,
		grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.UnaryInterceptor(e.unary),
		grpc.StreamInterceptor(e.stream),
	)...)
	espmv1.RegisterNodeServiceServer(s, &nodes{registry: r})
	espmv1.RegisterCertificateServiceServer(s, &certificates{registry: r, now: now})
	espmv1.RegisterRevocationServiceServer(s, &revocations{registry: r})
	espmv1.RegisterAuthorityServiceServer(s, &authority{registry: r})
	espmv1.RegisterGroupServiceServer(s, &groups{registry: r})
	espmv1.RegisterClassifierServiceServer(s, &classifier{registry: r})
	h := health.NewServer()
	for name := range s.GetServiceInfo() {
		h.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
	}
	context.AfterFunc(ctx, h.Shutdown)
	healthv1.RegisterHealthServer(s, h)
	reflection.Register(s)
	return s
}

// edge is what every call passes: a panic fails that call alone, errors
// become statuses, and what is the server's own fault is logged. Streams,
// which have no end of their own, end when the server is to stop.
type edge struct {
	log     logrus.FieldLogger
	serving context.Context
}

// errStopping ends a stream, which would else hold up the server's stop.
var errStopping = fmt.Errorf("%w: espm stops; ask again when it is back, a watch from the last revision seen", node.ErrUnavailable)

func (e edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer e.finish(info.FullMethod, &err)
	return handle(ctx, req)
}

func (e edge) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer e.finish(info.FullMethod, &err)
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(e.serving, func() { cancel(errStopping) })()
	err = handle(srv, stoppable{stream, ctx})
	if errors.Is(context.Cause(ctx), errStopping) {
		return errStopping
	}
	return err
}

// stoppable is a stream whose context ends when the server is to stop.
type stoppable struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stoppable) Context() context.Context { return s.ctx }

func (e edge) finish(method string, err *error) {
	if p := recover(); p != nil {
		// Not the value of the panic: it may hold what must not be logged.
		e.log.WithFields(logrus.Fields{"method": method, "stack": string(debug.Stack())}).Error("a call panicked")
		*err = status.Error(codes.Internal, "the server failed on this call; its log says where")
		return
	}
	*err = toStatus(*err)
	switch code := status.Code(*err); code {
	case codes.Internal, codes.Unknown, codes.Unavailable:
		e.log.WithField("method", method).WithError(*err).Error("a call failed")
	case codes.OK:
	default:
		e.log.WithField("method", method).WithError(*err).Debug("a call was refused")
	}
}

type classifier struct {
	espmv1.UnimplementedClassifierServiceServer
	registry *registry.Registry
}

func (s *classifier) ClassifyNode(ctx context.Context, req *espmv1.ClassifyNodeRequest) (*espmv1.ClassifyNodeResponse, error) {
	name, err := node.ParseCertname(req.GetCertname())
	if err != nil {
		return nil, err
	}
	c, err := enc.Classify(ctx, s.registry.Store, name)
	if err != nil {
		return nil, err
	}
	return &espmv1.ClassifyNodeResponse{Yaml: string(enc.Render(c))}, nil
}
