package registry_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// by is a context of a provisioner's call.
func by(t *testing.T, name string) context.Context { return granted(t, name, node.Grant{}) }

func granted(t *testing.T, name string, g node.Grant) context.Context {
	return node.WithCaller(t.Context(), node.Caller{Name: name, Role: node.Provisioner, Grant: g})
}

func admin(t *testing.T) context.Context {
	return node.WithCaller(t.Context(), node.Caller{Name: "local:root", Role: node.Admin})
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func (f *fixture) provisionBy(t *testing.T, ctx context.Context, name node.Certname, requestID string) registry.Provisioned {
	t.Helper()
	p, err := f.Provision(ctx, node.Node{Certname: name}, registry.Spec{}, requestID, false)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A request id is its principal's own: with another's, nobody gets the bundle or learns of it.
func TestRequestIDOfAnother(t *testing.T) {
	f := newFixture(t)
	a, b := by(t, "token:a"), by(t, "token:b")
	first := f.provisionBy(t, a, "web1.test", "job-1")
	for who, ctx := range map[string]context.Context{"another provisioner": b, "an admin": admin(t)} {
		p, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, registry.Spec{}, "job-1", false)
		wantErr(t, who+" with the same request", err, node.ErrNodeExists)
		if len(p.Bundle.PrivateKeyPEM.Bytes()) > 0 {
			t.Errorf("%s has the private key", who)
		}
	}
	other := f.provisionBy(t, b, "web2.test", "job-1")
	again := f.provisionBy(t, a, "web1.test", "job-1")
	if string(again.Bundle.PrivateKeyPEM.Bytes()) != string(first.Bundle.PrivateKeyPEM.Bytes()) || again.Node.UID != first.Node.UID {
		t.Error("another's use of the id took the owner's answer away")
	}
	if string(other.Bundle.PrivateKeyPEM.Bytes()) == string(first.Bundle.PrivateKeyPEM.Bytes()) {
		t.Error("two have one key")
	}
}

// Two who ask at once with one id and the same content are not one call.
func TestRequestIDOfAnotherInFlight(t *testing.T) {
	f := newFixture(t)
	signing, goOn := make(chan struct{}), make(chan struct{})
	f.authority.sign = func(ctx context.Context, req ca.Request) (*x509.Certificate, error) {
		close(signing)
		<-goOn
		return f.authority.Authority.Sign(ctx, req)
	}
	var wg sync.WaitGroup
	var mine registry.Provisioned
	var mineErr error
	wg.Go(func() {
		mine, mineErr = f.Provision(by(t, "token:a"), node.Node{Certname: "web1.test"}, registry.Spec{}, "job-1", false)
	})
	<-signing
	atOnce, cancel := context.WithTimeout(by(t, "token:b"), 10*time.Second) // it must not wait for the other
	defer cancel()
	p, err := f.Provision(atOnce, node.Node{Certname: "web1.test"}, registry.Spec{}, "job-1", false)
	close(goOn)
	wg.Wait()
	wantErr(t, "another, at once", err, node.ErrNodeExists)
	if len(p.Bundle.PrivateKeyPEM.Bytes()) > 0 || mineErr != nil {
		t.Errorf("another has a key of %d bytes; the first: %v", len(p.Bundle.PrivateKeyPEM.Bytes()), mineErr)
	}
	if _, err := tls.X509KeyPair(mine.Bundle.CertificatePEM, mine.Bundle.PrivateKeyPEM.Bytes()); err != nil {
		t.Error(err)
	}
}

func give(to string) func(*node.Node) error {
	return func(n *node.Node) error { n.Owner = to; return nil }
}

// What a node has goes with it to its new owner; the old one can neither see it nor have its key again.
func TestGive(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	a, b := by(t, "token:a"), by(t, "token:b")
	p := f.provisionBy(t, a, "web1.test", "job-1")
	orders, err := f.Revoke(a, registry.RevokeRequest{Certname: "web1.test"}, 10*time.Second, false)
	if err != nil {
		t.Fatal(err)
	}
	old := orders[0]
	now, err := f.Issue(a, "web1.test", "", registry.Spec{}, "job-2", false)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Update(a, "web1.test", registry.Expect{}, give("token:b"), false)
	wantErr(t, "given by its owner", err, node.ErrNotPermitted)
	for _, bad := range []string{"b", ":b", "token:", "token:\n", "token:" + strings.Repeat("x", 256)} {
		_, err = f.Update(admin(t), "web1.test", registry.Expect{}, give(bad), false)
		wantErr(t, "given to "+bad, err, node.ErrInvalid)
	}
	if _, err := f.Update(admin(t), "web1.test", registry.Expect{}, give("token:b"), false); err != nil {
		t.Fatal(err)
	}
	for who, ctx := range map[string]context.Context{"a": a, "b": b} {
		want, listed := error(nil), 1
		if who == "a" {
			want, listed = node.ErrNodeNotFound, 0
		}
		_, err := f.Get(ctx, "web1.test", p.Node.UID)
		wantErr(t, who+" gets the node", err, want)
		nodes, err := f.List(ctx, registry.NodeQuery{}, "", 10)
		if err != nil || len(nodes.Items) != listed {
			t.Errorf("%s lists %v, %v", who, nodes.Items, err)
		}
		certs, _, err := f.Certificates(ctx, "", "", 10)
		if err != nil || len(certs.Items) != 2*listed {
			t.Errorf("%s lists certificates %v, %v", who, certs.Items, err)
		}
		revs, _, err := f.ListRevocations(ctx, store.RevocationFilter{}, "", 10)
		if err != nil || len(revs.Items) != listed {
			t.Errorf("%s lists revocations %v, %v", who, revs.Items, err)
		}
		if _, err := f.Revocation(ctx, old.ID); (err == nil) != (listed == 1) {
			t.Errorf("%s gets the revocation: %v", who, err)
		}
	}
	for _, id := range []string{"job-1", "job-2"} {
		got, err := f.Issue(a, "web1.test", "", registry.Spec{}, id, false)
		wantErr(t, "the old owner asks for the key again", err, node.ErrNodeNotFound)
		if len(got.Bundle.PrivateKeyPEM.Bytes()) > 0 {
			t.Error("and has it")
		}
	}
	_, err = f.Provision(a, node.Node{Certname: "web1.test"}, registry.Spec{}, "job-1", false)
	wantErr(t, "the old owner provisions again", err, node.ErrRequestSpent)
	if n, err := f.Get(b, "web1.test", ""); err != nil || n.Newest() != now.Node.Newest() {
		t.Errorf("the node has lost its certificate: %+v, %v", n, err)
	}
}

// A node waits with its new owner until its certificate is there, which would else go to the old one.
func TestGiveWhileIssuing(t *testing.T) {
	f := newFixture(t)
	var err error
	f.authority.sign = func(ctx context.Context, req ca.Request) (*x509.Certificate, error) {
		_, err = f.Update(admin(t), "web1.test", registry.Expect{}, give("token:b"), false)
		return f.authority.Authority.Sign(ctx, req)
	}
	f.provisionBy(t, by(t, "token:a"), "web1.test", "")
	wantErr(t, "given while issuing", err, node.ErrIssuing)
}

// A name that lives again under another owner: each sees his own life.
func TestSuccessorOfAnother(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	a, b := by(t, "token:a"), by(t, "token:b")
	first := f.provisionBy(t, a, "web1.test", "")
	end := registry.TerminateRequest{Certname: "web1.test"}
	if _, err := f.Terminate(a, end, 10*time.Second, false); err != nil {
		t.Fatal(err)
	}
	second := f.provisionBy(t, b, "web1.test", "")

	_, err := f.Get(a, "web1.test", "")
	wantErr(t, "the old owner gets the live node", err, node.ErrNodeNotFound)
	_, err = f.Classify(a, "web1.test")
	wantErr(t, "the old owner classifies it", err, node.ErrNodeNotFound)
	_, err = f.Get(a, "web1.test", second.Node.UID)
	wantErr(t, "the old owner gets it by uid", err, node.ErrNodeNotFound)
	for _, uid := range []node.UID{"", first.Node.UID} {
		got, err := f.Terminate(a, registry.TerminateRequest{Certname: "web1.test", UID: uid}, 0, false)
		if err != nil || got.Node.UID != first.Node.UID || len(got.Revocations) != 1 || got.Revocations[0].Receipt == nil {
			t.Errorf("the old owner terminates %q again: %+v, %v", uid, got, err)
		}
	}
	if n, err := f.Get(b, "web1.test", ""); err != nil || n.UID != second.Node.UID || n.State != node.Provisioned {
		t.Errorf("the successor: %+v, %v", n, err)
	}
	_, err = f.Get(b, "web1.test", first.Node.UID)
	wantErr(t, "the new owner gets the earlier life", err, node.ErrNodeNotFound)
	_, earlier := f.Terminate(b, registry.TerminateRequest{Certname: "web1.test", UID: first.Node.UID}, 0, false)
	_, never := f.Terminate(b, registry.TerminateRequest{Certname: "web1.test", UID: "never-was"}, 0, false)
	if earlier == nil || strings.ReplaceAll(earlier.Error(), string(first.Node.UID), "never-was") != never.Error() {
		t.Errorf("the new owner terminates the earlier life: %v; one that never was: %v", earlier, never)
	}
	if _, err := f.Terminate(b, end, 0, false); err != nil {
		t.Fatal(err)
	}
	for ctx, want := range map[context.Context]node.UID{a: first.Node.UID, b: second.Node.UID} {
		if got, err := f.Terminate(ctx, end, 0, false); err != nil || got.Node.UID != want {
			t.Errorf("terminated again, when both lives are over: %+v, %v, want %s", got.Node, err, want)
		}
	}
	certs, _, err := f.Certificates(a, "web1.test", "", 10)
	if err != nil || len(certs.Items) != 1 || certs.Items[0].Serial != first.Node.Newest() {
		t.Errorf("the old owner's certificates of the name: %v, %v", certs.Items, err)
	}
}

// However a terminate without a uid falls between lives, it ends none of another.
func TestTerminateRacesSuccessor(t *testing.T) {
	f := newFixture(t)
	a, b := by(t, "token:a"), by(t, "token:b")
	end := registry.TerminateRequest{Certname: "web1.test"}
	for range 30 {
		if _, err := f.Register(a, node.Node{Certname: "web1.test"}, "", false); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if got, err := f.Terminate(a, end, 0, false); err != nil || got.Node.Owner != "token:a" {
					t.Errorf("got %+v, %v", got.Node, err)
				}
			})
		}
		var n node.Node
		for {
			var err error
			if n, err = f.Register(b, node.Node{Certname: "web1.test"}, "", false); err == nil {
				break
			} else if !errors.Is(err, node.ErrNodeExists) {
				t.Fatal(err)
			}
		}
		wg.Wait()
		if got, err := f.Get(b, "web1.test", ""); err != nil || got.UID != n.UID {
			t.Fatalf("another's node is gone: %+v, %v", got, err)
		}
		if _, err := f.Terminate(b, end, 0, false); err != nil {
			t.Fatal(err)
		}
	}
}

// What was made before nodes had owners is for those who see all.
func TestWithoutAnOwner(t *testing.T) {
	f := newFixture(t)
	p := f.provisionBy(t, admin(t), "web1.test", "")
	if _, err := f.Update(admin(t), "web1.test", registry.Expect{}, give(""), false); err != nil {
		t.Fatal(err)
	}
	reader := node.WithCaller(t.Context(), node.Caller{Name: "token:r", Role: node.Reader})
	for _, who := range []context.Context{by(t, "token:a"), by(t, "")} {
		_, err := f.Get(who, "web1.test", "")
		wantErr(t, "get", err, node.ErrNodeNotFound)
		_, _, err = f.Certificate(who, p.Node.Newest())
		wantErr(t, "certificate", err, node.ErrCertificateNotFound)
		if page, err := f.List(who, registry.NodeQuery{}, "", 10); len(page.Items) > 0 {
			t.Errorf("list: %v, %v", page.Items, err)
		}
	}
	if n, err := f.Get(reader, "web1.test", ""); err != nil || n.Owner != "" {
		t.Errorf("a reader: %+v, %v", n, err)
	}
}

// A request id from before ids were a principal's own is an admin's still.
func TestRequestIDFromBefore(t *testing.T) {
	f := newFixture(t)
	f.provisionBy(t, admin(t), "web1.test", "job-1")
	was, _, err := f.store.Request(self(t), "local:root job-1")
	if err != nil {
		t.Fatal(err)
	}
	n, err := f.store.Node(self(t), "web1.test")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := f.store.Certificate(self(t), n.Newest())
	if err != nil {
		t.Fatal(err)
	}
	old := n.Clone()
	c := store.NewChange()
	c.RemoveRequest(was.Key())
	was.Principal, was.Revision = "", 0
	n.Requests, cert.RequestID = []string{"job-1"}, "job-1"
	c.PutRequest(was)
	c.PutNode(&old, n)
	c.PutCertificate(cert)
	c.Unaudited()
	if _, err := f.store.Commit(self(t), c); err != nil {
		t.Fatal(err)
	}
	_, err = f.Provision(by(t, "token:a"), node.Node{Certname: "web1.test"}, registry.Spec{}, "job-1", false)
	wantErr(t, "a provisioner", err, node.ErrNodeExists)
	if again := f.provisionBy(t, admin(t), "web1.test", "job-1"); again.Node.UID != n.UID {
		t.Errorf("an admin's retry got %+v", again.Node)
	}
}

// down is a queue that can do nothing at present.
type down struct{ registry.Revocations }

func (down) Down() *node.Failure { return &node.Failure{Error: "revoking web7.test: no", Attempts: 3} }

// Why nothing can be revoked may name somebody's node.
func TestDownIsToldWithoutNames(t *testing.T) {
	f := newFixture(t)
	f.options.Revocations = down{f.queue}
	f.restart()
	if got := f.Down(admin(t)); got == nil || got.Error != "revoking web7.test: no" {
		t.Errorf("an admin is told %+v", got)
	}
	if got := f.Down(by(t, "token:a")); got == nil || strings.Contains(got.Error, "web7") || got.Attempts != 3 {
		t.Errorf("a provisioner is told %+v", got)
	}
}
