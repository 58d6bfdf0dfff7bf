package registry_test

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// lines returns all audit lines, oldest first.
func (f *fixture) lines(t *testing.T) (all []node.SealedLine) {
	t.Helper()
	log := audit.New(f.store, audit.Options{Now: f.clock.Now, Log: f.options.Log})
	err := log.Export(self(t), 0, func(page []node.SealedLine) error { all = append(all, page...); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Who asked, and with which request id, is in the lines of all that a call does, also of what goes on without its caller.
func TestLinesSayWhoAsked(t *testing.T) {
	f := newFixture(t)
	who := node.Caller{Name: "token:ci", Role: node.Provisioner, Peer: "192.0.2.1:5", Method: "espm.v1.NodeService/ProvisionNode"}
	ctx := node.WithCaller(t.Context(), who)
	p, err := f.Provision(ctx, node.Node{Certname: "a.test"}, registry.Spec{}, "r1", false)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.Provision(gone, node.Node{Certname: "b.test"}, registry.Spec{}, "r2", false); err == nil {
		t.Error("answered a caller who is gone")
	}
	f.Wait()
	if _, err := f.Revoke(ctx, registry.RevokeRequest{Certname: "a.test"}, 0, false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Issue(ctx, "a.test", "", registry.Spec{}, "r3", false); err != nil {
		t.Fatal(err)
	}
	f.authority.sign = func(ctx context.Context, req ca.Request) (*x509.Certificate, error) {
		if _, err := f.authority.Authority.Sign(ctx, req); err != nil {
			t.Error(err)
		}
		return nil, errLost
	}
	if _, err := f.Provision(ctx, node.Node{Certname: "c.test"}, registry.Spec{}, "r4", false); !errors.Is(err, errLost) {
		t.Errorf("got %v", err)
	}
	type said struct {
		action  node.Action
		request string
	}
	var got []said
	for _, l := range f.lines(t) {
		got = append(got, said{l.Action, l.RequestID})
		if l.Principal != who.Name || l.Role != who.Role || l.Peer != who.Peer || l.Method != who.Method || l.Serial == "" {
			t.Errorf("%+v", l)
		}
	}
	want := []said{
		{node.ActionProvision, "r1"}, {node.ActionIssue, "r1"},
		{node.ActionProvision, "r2"}, {node.ActionIssue, "r2"},
		{node.ActionOrder, ""},
		{node.ActionBegin, "r3"}, {node.ActionIssue, "r3"},
		{node.ActionProvision, "r4"}, {node.ActionSettle, "r4"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if l := f.lines(t)[1]; l.Serial != p.Node.Newest() || l.UID != p.Node.UID || l.Revision != p.Node.Revision || !l.Time.Equal(f.clock.Now().Truncate(time.Microsecond)) {
		t.Errorf("%+v", l)
	}
}

// What espm does by itself has lines in its own name: the end of a launch deadline, receipts, what is forgotten.
func TestLinesOfOwnWork(t *testing.T) {
	f := newFixture(t)
	ctx := node.WithCaller(t.Context(), node.Caller{Name: "token:ci", Role: node.Provisioner})
	if _, err := f.Provision(ctx, node.Node{Certname: "a.test", ClaimWithin: time.Hour}, registry.Spec{}, "", false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.EndLaunches(self(t)); err != nil {
		t.Fatal(err)
	}
	f.clock.advance(100 * time.Hour)
	if _, err := f.EndLaunches(self(t)); err != nil {
		t.Fatal(err)
	}
	f.run(t)
	f.drain(t)
	f.clock.advance(40 * 24 * time.Hour)
	if err := f.Sweep(self(t)); err != nil {
		t.Fatal(err)
	}
	want := map[node.Action]string{node.ActionTerminate: "not claimed by ", node.ActionReceipt: "CRL ", node.ActionForget: ""}
	for _, l := range f.lines(t)[2:] {
		comment, expected := want[l.Action]
		if !expected || l.Principal != "espm" || l.Certname != "a.test" || l.Comment[:len(comment)] != comment {
			t.Errorf("%+v", l)
		}
		delete(want, l.Action)
	}
	if len(want) > 0 {
		t.Errorf("no line of %v", want)
	}
}
