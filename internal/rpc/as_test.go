package rpc

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// as returns the rig as one caller sees it: what the API's edge finds out of a
// caller is given here.
func (r *rig) as(t *testing.T, c node.Caller) *rig {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	e := edge{log, context.Background()}
	s := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			return e.unary(node.WithCaller(ctx, c), req, info, handle)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return e.stream(srv, stoppable{stream, node.WithCaller(stream.Context(), c)}, info, handle)
		}),
	)
	espmv1.RegisterNodeServiceServer(s, &nodes{registry: r.registry})
	espmv1.RegisterCertificateServiceServer(s, &certificates{registry: r.registry, now: time.Now})
	espmv1.RegisterRevocationServiceServer(s, &revocations{registry: r.registry})
	espmv1.RegisterAuthorityServiceServer(s, &authority{registry: r.registry})
	espmv1.RegisterGroupServiceServer(s, &groups{registry: r.registry})
	espmv1.RegisterClassifierServiceServer(s, &classifier{registry: r.registry})
	path := filepath.Join(r.dir, strings.ReplaceAll(c.Name, "/", "_"))
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); s.Stop() })
	out := *r
	out.conn = conn
	out.nodes = espmv1.NewNodeServiceClient(conn)
	out.certs = espmv1.NewCertificateServiceClient(conn)
	out.revocations = espmv1.NewRevocationServiceClient(conn)
	out.groups = espmv1.NewGroupServiceClient(conn)
	out.classifier = espmv1.NewClassifierServiceClient(conn)
	return &out
}

// provisioner is a caller that sees its own alone.
func provisioner(name string) node.Caller {
	return node.Caller{Name: name, Role: node.Provisioner}
}
