// Package rpc serves espm's gRPC API. The handlers are thin wrappers of package registry. One table turns the errors of
// the domain into gRPC codes.
package rpc

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// maxMessage is the size of the largest accepted request, in bytes. Every valid request is smaller, so that the error
// for a classification that is too large can name the field.
const maxMessage = 16 << 20

// Options are a server's parts. All but GRPC are required.
type Options struct {
	Registry *registry.Registry
	Gate     *auth.Gate
	Tokens   *auth.Tokens
	Audit    *audit.Log
	Backups  Snapshots
	Clock    Clock
	Limits   Limits
	Now      func() time.Time
	Log      logrus.FieldLogger
	GRPC     []grpc.ServerOption // further options
}

// NewServer returns a gRPC server with all of espm's services, health and reflection. The listeners must be made by
// Listen. Streams end when ctx is done; Shutdown ends all other calls.
func NewServer(ctx context.Context, o Options) *Server {
	r, limits := o.Registry, o.Limits
	h := newHandshakes(o)
	if h.tls != nil {
		go h.watch(ctx)
	}
	e := &edge{log: o.Log, gate: o.Gate, audit: o.Audit, now: o.Now, serving: ctx, limits: limits}
	go e.endInvalid(ctx)
	s := grpc.NewServer(append(o.GRPC,
		grpc.Creds(h),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.InTapHandle(e.tap),
		grpc.StatsHandler(connections{}),
		grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(limits.Streams),
		grpc.MaxHeaderListSize(limits.HeaderList),
		grpc.ConnectionTimeout(limits.Handshake),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: limits.Idle, Time: pingAfter, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: limits.Ping, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(e.unary),
		grpc.StreamInterceptor(e.stream),
	)...)
	espmv1.RegisterNodeServiceServer(s, &nodes{registry: r, now: o.Now})
	espmv1.RegisterCertificateServiceServer(s, &certificates{registry: r, now: o.Now})
	espmv1.RegisterRevocationServiceServer(s, &revocations{registry: r})
	espmv1.RegisterAuthorityServiceServer(s, &authority{registry: r})
	espmv1.RegisterGroupServiceServer(s, &groups{registry: r})
	espmv1.RegisterClassifierServiceServer(s, &classifier{registry: r})
	espmv1.RegisterTokenServiceServer(s, &tokens{tokens: o.Tokens, registry: r})
	espmv1.RegisterAuditServiceServer(s, &auditLog{log: o.Audit})
	espmv1.RegisterBackupServiceServer(s, &backups{snapshots: o.Backups, audit: o.Audit, now: o.Now})
	espmv1.RegisterClockServiceServer(s, &clocks{clock: o.Clock})
	hs := health.NewServer()
	for name := range s.GetServiceInfo() {
		hs.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
	}
	context.AfterFunc(ctx, hs.Shutdown)
	healthv1.RegisterHealthServer(s, hs)
	reflection.Register(s)
	e.methods = methods(s)
	return &Server{s, &e.underway}
}

// Pings detect a client that vanished without closing its connection.
const (
	pingAfter   = time.Minute
	pingTimeout = 20 * time.Second
)

type classifier struct {
	espmv1.UnimplementedClassifierServiceServer
	registry *registry.Registry
}

func (s *classifier) ClassifyNode(ctx context.Context, req *espmv1.ClassifyNodeRequest) (*espmv1.ClassifyNodeResponse, error) {
	name, err := node.ParseCertname(req.GetCertname())
	if err := node.Join(err, mayReveal(ctx, req)); err != nil {
		return nil, err
	}
	c, err := s.registry.Classify(ctx, name)
	if err != nil {
		return nil, err
	}
	if !req.GetRevealSensitive() {
		c = c.Redacted()
	}
	return &espmv1.ClassifyNodeResponse{Yaml: string(enc.Render(c))}, nil
}
