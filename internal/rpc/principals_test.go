package rpc

import (
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// A principal that is gone, or has less, loses its open calls and streams, though nothing is sent on them.
func TestPrincipalsChangeEndsStreams(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	reader := espmv1.NewNodeServiceClient(n.dial(t, n.ca.leaf(t, "reader.test", nil)))
	other := espmv1.NewNodeServiceClient(n.dial(t, n.ca.leaf(t, "admin.test", nil)))
	watch := func(c espmv1.NodeServiceClient) watch {
		t.Helper()
		if _, err := c.ListNodes(t.Context(), &espmv1.ListNodesRequest{}); err != nil {
			t.Fatal(err)
		}
		w, err := c.WatchNodes(t.Context(), &espmv1.WatchNodesRequest{AfterRevision: 1 << 40})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	ends, stays := watch(reader), watch(other)
	p, err := auth.NewPrincipals([]auth.Principal{{Certname: "admin.test", Role: node.Admin}, {Certname: "new.test", Role: node.Reader}})
	if err != nil {
		t.Fatal(err)
	}
	n.gate.SetPrincipals(p)
	if _, err := ends.Recv(); codeOf(err) != codes.Unavailable && codeOf(err) != codes.Unauthenticated {
		t.Errorf("the watch of who is gone: %v", err)
	}
	if _, err := reader.ListNodes(t.Context(), &espmv1.ListNodesRequest{}); codeOf(err) != codes.PermissionDenied {
		t.Errorf("the next call of who is gone: %v", err)
	}
	fresh := espmv1.NewNodeServiceClient(n.dial(t, n.ca.leaf(t, "new.test", nil)))
	if _, err := fresh.ListNodes(t.Context(), &espmv1.ListNodesRequest{}); err != nil {
		t.Errorf("who is new: %v", err)
	}
	if err := stays.Context().Err(); err != nil {
		t.Errorf("the watch of who has not changed: %v", err)
	}
}

// The CA's private key leaves espm on its own host alone.
func TestBackupWithKeyIsLocal(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	for name, c := range n.callers(t) {
		if c.role != node.Admin {
			continue
		}
		stream, err := espmv1.NewBackupServiceClient(c.conn).CreateBackup(c.ctx, &espmv1.CreateBackupRequest{IncludePrivateKey: true})
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = stream.Recv()
		}
		if local := name == "local"; local != errors.Is(err, io.EOF) || !local && codeOf(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx := n.token(t, "here", espmv1.Role_ROLE_ADMIN, nil)
	stream, err := espmv1.NewBackupServiceClient(n.conn).CreateBackup(ctx, &espmv1.CreateBackupRequest{IncludePrivateKey: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); codeOf(err) != codes.PermissionDenied {
		t.Errorf("a token on the local socket: %v", err)
	}
}

// A token can't be made that would be a principal, and one that may be any but those is warned of.
func TestTokenWithAuthRole(t *testing.T) {
	r := newRig(t)
	r.registry.SetPrincipals(registry.Principals{AuthRoles: []string{"espm-admins"}})
	create := func(name, entry string) (*espmv1.CreateTokenResponse, error) {
		return espmv1.NewTokenServiceClient(r.conn).CreateToken(t.Context(), &espmv1.CreateTokenRequest{
			Name: name, Role: espmv1.Role_ROLE_PROVISIONER, Grant: &espmv1.Grant{Extensions: &espmv1.StringList{Values: []string{entry}}},
		})
	}
	if _, err := create("a", "pp_auth_role=espm-admins"); codeOf(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "only an admin") {
		t.Errorf("got %v", err)
	}
	if resp, err := create("b", "pp_auth_role"); err != nil || len(resp.GetWarnings()) != 1 || !strings.Contains(resp.GetWarnings()[0], "pp_auth_role=VALUE") {
		t.Errorf("got %v, %v", resp, err)
	}
	if resp, err := create("c", "pp_auth_role=web"); err != nil || len(resp.GetWarnings()) != 0 {
		t.Errorf("got %v, %v", resp, err)
	}
}
