package rpc

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// token makes a token and returns a context whose calls carry it.
func (r *rig) token(t *testing.T, name string, role espmv1.Role, grant *espmv1.Grant) context.Context {
	t.Helper()
	resp, err := espmv1.NewTokenServiceClient(r.conn).CreateToken(t.Context(), &espmv1.CreateTokenRequest{Name: name, Role: role, Grant: grant})
	if err != nil {
		t.Fatal(err)
	}
	return bearing(t, resp.GetSecret())
}

func bearing(t *testing.T, text string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+text)
}

func callWithWrongToken(t *testing.T, r *rig) error {
	_, err := r.nodes.ListNodes(bearing(t, "espm_"), &espmv1.ListNodesRequest{})
	return err
}

func registerAsReader(t *testing.T, r *rig) error {
	_, err := r.nodes.RegisterNode(r.token(t, "r", espmv1.Role_ROLE_READER, nil), &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "a.test"}})
	return err
}

func callTooFast(t *testing.T, r *rig) error {
	ctx := r.token(t, "r", espmv1.Role_ROLE_READER, &espmv1.Grant{RequestsPerSecond: 0.001})
	if _, err := r.nodes.ListNodes(ctx, &espmv1.ListNodesRequest{}); err != nil {
		t.Error("the first call: ", err)
	}
	_, err := r.nodes.ListNodes(ctx, &espmv1.ListNodesRequest{})
	return err
}

func provisionTooMany(t *testing.T, r *rig) error {
	ctx := r.token(t, "p", espmv1.Role_ROLE_PROVISIONER, &espmv1.Grant{OpenProvisions: 1})
	signing, release := make(chan struct{}), make(chan struct{})
	r.fail(func(context.Context) error { close(signing); <-release; return nil })
	var first error
	var wg sync.WaitGroup
	wg.Go(func() {
		_, first = r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}})
	})
	<-signing
	r.fail(nil)
	_, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "b.test"}})
	if _, err := r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: "b.test"}); status.Code(err) != codes.NotFound {
		t.Errorf("the refused one: %v", err)
	}
	close(release)
	wg.Wait()
	_, again := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "b.test"}})
	if err := errors.Join(first, again); err != nil {
		t.Error(err)
	}
	return err
}

// A limit says when to come back, in the form that clients of other languages read.
func TestLimitsHaveARetryDelay(t *testing.T) {
	for name, call := range map[string]func(*testing.T, *rig) error{"rate": callTooFast, "open": provisionTooMany} {
		delay := time.Duration(0)
		for _, d := range status.Convert(call(t, newRig(t))).Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok {
				delay = info.GetRetryDelay().AsDuration()
			}
		}
		if delay <= 0 || delay > 1000*time.Second {
			t.Errorf("%s: retry after %v", name, delay)
		}
	}
}

func TestTokenMethods(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	client := espmv1.NewTokenServiceClient(r.conn)
	grant := &espmv1.Grant{Names: &espmv1.StringList{Values: []string{"*.test"}}, Environments: &espmv1.StringList{}, MaxTtl: durationpb.New(time.Hour), OpenProvisions: 2}
	made, err := client.CreateToken(ctx, &espmv1.CreateTokenRequest{Name: "ci", Role: espmv1.Role_ROLE_PROVISIONER, Grant: grant, Ttl: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	tok := made.GetToken()
	if life := tok.GetExpireTime().AsTime().Sub(tok.GetCreateTime().AsTime()); life != time.Hour || tok.GetCreatePrincipal() == "" {
		t.Errorf("made: %v", tok)
	}
	if g := tok.GetGrant(); g.GetEnvironments() == nil || g.GetGroups() != nil || g.GetNames().GetValues()[0] != "*.test" || g.GetMaxTtl().AsDuration() != time.Hour || g.GetOpenProvisions() != 2 {
		t.Errorf("grant: %v", g)
	}
	list, err := client.ListTokens(ctx, &espmv1.ListTokensRequest{})
	if err != nil || len(list.GetTokens()) != 1 || list.GetTokens()[0].GetLastUseTime() != nil {
		t.Errorf("list: %v, %v", list, err)
	}
	works := func(secret string, want codes.Code) {
		t.Helper()
		if _, err := r.nodes.ListNodes(bearing(t, secret), &espmv1.ListNodesRequest{}); status.Code(err) != want {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	works(made.GetSecret(), codes.OK)
	rotated, err := client.RotateToken(ctx, &espmv1.RotateTokenRequest{Name: "ci"})
	if err != nil || rotated.GetSecret() == made.GetSecret() || rotated.GetToken().GetRotateTime() == nil {
		t.Fatalf("rotated: %v", err)
	}
	works(made.GetSecret(), codes.Unauthenticated)
	works(rotated.GetSecret(), codes.OK)
	if _, err := client.RevokeToken(ctx, &espmv1.RevokeTokenRequest{Name: "ci"}); err != nil {
		t.Fatal(err)
	}
	works(rotated.GetSecret(), codes.Unauthenticated)
	got, err := client.GetToken(ctx, &espmv1.GetTokenRequest{Name: "ci"})
	if err != nil || got.GetToken().GetRevokeTime() == nil {
		t.Errorf("revoked: %v, %v", got, err)
	}
	back, err := client.RotateToken(ctx, &espmv1.RotateTokenRequest{Name: "ci", Ttl: durationpb.New(time.Minute)})
	if err != nil || back.GetToken().GetRevokeTime() != nil {
		t.Fatalf("revived: %v, %v", back, err)
	}
	works(back.GetSecret(), codes.OK)
}

func TestTokenBadInput(t *testing.T) {
	r := newRig(t)
	client := espmv1.NewTokenServiceClient(r.conn)
	reader := espmv1.Role_ROLE_READER
	for field, req := range map[string]*espmv1.CreateTokenRequest{
		"name":            {Name: "A", Role: reader},
		"role":            {Name: "a"},
		"ttl":             {Name: "a", Role: reader, Ttl: durationpb.New(0)},
		"grant.names":     {Name: "a", Role: reader, Grant: &espmv1.Grant{Names: &espmv1.StringList{}}},
		"grant.groups[0]": {Name: "a", Role: espmv1.Role_ROLE_PROVISIONER, Grant: &espmv1.Grant{Groups: &espmv1.StringList{Values: []string{""}}}},
	} {
		before := r.held(t)
		_, err := client.CreateToken(t.Context(), req)
		if bad := expect(t, err, codes.InvalidArgument, "INVALID"); len(bad) != 1 || bad[0].GetField() != field {
			t.Errorf("%s: got %v", field, bad)
		}
		if r.held(t) != before {
			t.Errorf("%s: something changed", field)
		}
	}
}

// A token that ends takes what streams it opened with it.
func TestRevokedTokenEndsAWatch(t *testing.T) {
	r := newRig(t)
	ctx := r.token(t, "r", espmv1.Role_ROLE_READER, nil)
	n := r.register(t, &espmv1.Node{Certname: "a.test"})
	w, err := r.nodes.WatchNodes(ctx, &espmv1.WatchNodesRequest{AfterRevision: n.GetRevision() - 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := espmv1.NewTokenServiceClient(r.conn).RevokeToken(t.Context(), &espmv1.RevokeTokenRequest{Name: "r"}); err != nil {
		t.Fatal(err)
	}
	r.register(t, &espmv1.Node{Certname: "b.test"})
	if got, err := w.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the watch told %v, %v", got, err)
	}
}
