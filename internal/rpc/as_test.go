package rpc

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// as returns the rig as one caller sees it: by a token of that name, or the
// rig's own, on the local socket.
func (r *rig) as(t *testing.T, c node.Caller) *rig {
	t.Helper()
	name, byToken := strings.CutPrefix(c.Name, "token:")
	if !byToken {
		return r
	}
	var grant *espmv1.Grant
	if c.Role == node.Provisioner { // tests call as fast as the machine can, which the usual limit refuses
		grant = &espmv1.Grant{RequestsPerSecond: 1e6}
	}
	md, _ := metadata.FromOutgoingContext(r.token(t, name, espmv1.Role(espmv1.Role_value["ROLE_"+strings.ToUpper(string(c.Role))]), grant))
	bear := func(ctx context.Context) context.Context { return metadata.NewOutgoingContext(ctx, md) }
	conn, err := grpc.NewClient(r.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, resp any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(bear(ctx), method, req, resp, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(bear(ctx), desc, cc, method, opts...)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
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
