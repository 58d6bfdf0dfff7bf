package registry_test

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

func (f *fixture) revoke(t *testing.T, req registry.RevokeRequest) node.Revocation {
	t.Helper()
	revs, err := f.Revoke(self(t), req, 20*time.Second, false)
	if err != nil {
		t.Fatal(err)
	}
	return revs[0]
}

func TestRevokeLeavesTheNode(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	p := f.provision(t, "web1.test", "")
	rev := f.revoke(t, registry.RevokeRequest{Certname: "web1.test", Reason: node.Superseded, Comment: "ticket"})
	if rev.Receipt == nil || rev.Serial != p.Node.Newest() || rev.UID != p.Node.UID || rev.Reason != node.Superseded || !f.revoked(t)[p.Node.Newest()] {
		t.Errorf("got %+v", rev)
	}
	n, err := f.Get(self(t), "web1.test", "")
	if err != nil || n.State != node.Registered || n.Newest() != "" || n.UID != p.Node.UID {
		t.Errorf("the node: %+v, %v", n, err)
	}
	if again := f.revoke(t, registry.RevokeRequest{Serial: p.Node.Newest()}); again.ID != rev.ID {
		t.Errorf("a second order: %+v", again)
	}
	if _, err := f.Revoke(self(t), registry.RevokeRequest{Certname: "web1.test"}, 0, false); !errors.Is(err, node.ErrCertificateNotFound) {
		t.Errorf("a node without a certificate: %v", err)
	}
	next, err := f.Issue(self(t), "web1.test", "", registry.Spec{}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	// A late call for the first one does not touch the second.
	f.revoke(t, registry.RevokeRequest{Serial: p.Node.Newest()})
	if n, err := f.Get(self(t), "web1.test", ""); err != nil || n.Newest() != next.Node.Newest() || f.revoked(t)[next.Node.Newest()] {
		t.Errorf("the node: %+v, %v", n, err)
	}
}

// A dropped order leaves the certificate valid, and it can be revoked after all.
func TestDroppedRevocation(t *testing.T) {
	f := newFixture(t)
	p := f.provision(t, "web1.test", "")
	f.terminate(t, "web1.test", "", 0)
	pending, err := f.store.Pending(self(t), "", 10)
	if err != nil || len(pending) != 1 {
		t.Fatalf("got %v, %v", pending, err)
	}
	if _, err := f.DropRevocation(self(t), pending[0].ID, ""); !errors.Is(err, node.ErrInvalid) {
		t.Errorf("without a comment: %v", err)
	}
	if _, err := f.DropRevocation(self(t), pending[0].ID, "a test"); err != nil {
		t.Fatal(err)
	}
	f.run(t)
	if got := f.terminate(t, "web1.test", p.Node.UID, 20*time.Second); got.Revocations[0].Drop == nil || f.revoked(t)[p.Node.Newest()] {
		t.Errorf("got %+v", got)
	}
	if rev := f.revoke(t, registry.RevokeRequest{Serial: p.Node.Newest()}); rev.ID == pending[0].ID || !f.revoked(t)[p.Node.Newest()] {
		t.Errorf("got %+v", rev)
	}
}

// What espm did not issue, and what Puppet Server needs, is revoked by force alone.
func TestRevokeByForce(t *testing.T) {
	for _, byName := range []bool{false, true} {
		f := newFixture(t)
		f.authority.byName = byName
		f.run(t)
		key, err := ca.GenerateKey(ca.ECP256)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := f.authority.Sign(self(t), ca.Request{Certname: "stranger.test", Serial: f.authority.NewSerial(), Key: key})
		if err != nil {
			t.Fatal(err)
		}
		stranger := node.SerialOf(cert.SerialNumber)
		puppet := f.provision(t, "puppet.test", "").Node.Newest()
		for _, c := range []struct {
			req  registry.RevokeRequest
			want error
		}{
			{registry.RevokeRequest{Certname: "puppet.test"}, node.ErrProtected},
			{registry.RevokeRequest{Serial: puppet}, node.ErrProtected},
			{registry.RevokeRequest{Certname: "stranger.test"}, node.ErrNodeNotFound},
			{registry.RevokeRequest{Certname: "stranger.test", Serial: stranger}, node.ErrForeignCertificate},
			{registry.RevokeRequest{Serial: stranger, Force: true}, node.ErrCertificateNotFound},
			{registry.RevokeRequest{Certname: "stranger.test", Serial: "0BAD", Force: true}, node.ErrCertificateNotFound},
			{registry.RevokeRequest{Certname: "nobody.test", Force: true}, node.ErrCertificateNotFound},
			{registry.RevokeRequest{Certname: "other.test", Serial: puppet, Force: true}, node.ErrInvalid},
			{registry.RevokeRequest{Force: true}, node.ErrInvalid},
		} {
			if _, err := f.Revoke(self(t), c.req, 0, false); !errors.Is(err, c.want) {
				t.Errorf("%+v: got %v, want %v", c.req, err, c.want)
			}
		}
		if n := len(f.revoked(t)); n != 0 {
			t.Fatalf("%d are revoked", n)
		}
		if rev := f.revoke(t, registry.RevokeRequest{Certname: "puppet.test", Force: true}); rev.Receipt == nil || !f.revoked(t)[puppet] {
			t.Errorf("puppet.test: %+v", rev)
		}
		if rev := f.revoke(t, registry.RevokeRequest{Certname: "stranger.test", Force: true}); rev.Receipt == nil || rev.UID != "" || !f.revoked(t)[stranger] {
			t.Errorf("stranger.test: %+v", rev)
		}
	}
}

// A certificate that is being issued is not there to be revoked yet.
func TestRevokeWhileIssuing(t *testing.T) {
	f := newFixture(t)
	signing, release := make(chan struct{}), make(chan struct{})
	f.authority.sign = signAfter(f, signing, release)
	done := make(chan error, 1)
	go func() {
		_, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false)
		done <- err
	}()
	<-signing
	_, err := f.Revoke(self(t), registry.RevokeRequest{Certname: "web1.test"}, 0, false)
	close(release)
	if !errors.Is(err, node.ErrIssuing) {
		t.Errorf("got %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// signAfter signs once release is closed.
func signAfter(f *fixture, signing, release chan struct{}) func(context.Context, ca.Request) (*x509.Certificate, error) {
	return func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
		close(signing)
		<-release
		return f.authority.Authority.Sign(ctx, r)
	}
}
