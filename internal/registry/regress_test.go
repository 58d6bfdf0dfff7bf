package registry_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// A call that failed and is asked again late neither takes nor destroys what
// another call got meanwhile.
func TestLateRetryOfAFailedIssue(t *testing.T) {
	for _, csr := range []bool{false, true} {
		t.Run(fmt.Sprintf("csr %v", csr), func(t *testing.T) {
			f := newFixture(t)
			f.run(t)
			f.register(t, "web1.test")
			var first, second registry.Spec
			if csr {
				first.CSRPEM, second.CSRPEM = newCSR(t, "web1.test"), newCSR(t, "web1.test")
			}
			f.failSign(false)
			if _, err := f.Issue(self(t), "web1.test", "", first, "r1", false); err == nil {
				t.Fatal("the fault did not show")
			}
			f.authority.heal()
			f.drain(t)
			p, err := f.Issue(self(t), "web1.test", "", second, "r2", false)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Issue(self(t), "web1.test", "", first, "r1", false); !errors.Is(err, node.ErrCertificateExists) {
				t.Errorf("got %v, want ErrCertificateExists", err)
			}
			f.drain(t)
			if n, err := f.Get(self(t), "web1.test", ""); err != nil || n.Newest() != p.Node.Newest() || f.revoked(t)[n.Newest()] {
				t.Errorf("the late retry changed %+v, %v", n, err)
			}
		})
	}
}

// The provision's own request id does not bring back a certificate that a
// later issue made.
func TestRetryOfAProvisionAfterAnotherIssue(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	f.provision(t, "web1.test", "r1")
	f.restart()
	f.failSign(false)
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false); err == nil {
		t.Fatal("the fault did not show")
	}
	f.authority.heal()
	p, err := f.Issue(self(t), "web1.test", "", registry.Spec{}, "r2", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false); !errors.Is(err, node.ErrCertificateExists) {
		t.Errorf("got %v, want ErrCertificateExists", err)
	}
	f.drain(t)
	if f.revoked(t)[p.Node.Newest()] {
		t.Error("the live certificate was revoked")
	}
}

// Without a request id nobody can come back for the answer.
func TestNothingStaysOfACallWithoutIDOrCaller(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	var leave context.CancelFunc // of the caller under way
	ctx, first := context.WithCancel(self(t))
	defer first()
	leave = first
	f.authority.sign = func(c context.Context, r ca.Request) (*x509.Certificate, error) {
		leave()
		return f.authority.Authority.Sign(c, r)
	}
	if _, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, registry.Spec{}, "", false); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	f.register(t, "web2.test")
	ctx, second := context.WithCancel(self(t))
	defer second()
	leave = second
	if _, err := f.Issue(ctx, "web2.test", "", registry.Spec{}, "", false); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	f.authority.heal()
	f.drain(t)
	if len(f.revoked(t)) != 2 {
		t.Errorf("revoked %v, want both", f.revoked(t))
	}
	if _, err := f.Get(self(t), "web1.test", ""); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("web1: %v", err)
	}
	if n, err := f.Get(self(t), "web2.test", ""); err != nil || n.State != node.Registered {
		t.Errorf("web2: %+v, %v", n, err)
	}
}

// A terminate that waits does not take a certificate that is being issued for none.
func TestTerminateWaitsForAnOpenIssue(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	signed, release := make(chan struct{}), make(chan struct{})
	f.authority.sign = func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
		cert, err := f.authority.Authority.Sign(ctx, r)
		close(signed)
		<-release
		return cert, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = f.Provision(node.AsSelf(context.Background()), node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false)
	})
	<-signed
	at := f.terminate(t, "web1.test", "", 0)
	if !at.IssueOpen || len(at.Revocations) != 0 {
		t.Errorf("without waiting: %+v", at)
	}
	wg.Go(func() { close(release) })
	got := f.terminate(t, "web1.test", at.Node.UID, 20*time.Second)
	if got.IssueOpen || len(got.Revocations) != 1 || got.Revocations[0].Receipt == nil {
		t.Errorf("after waiting: %+v", got)
	}
	wg.Wait()
}

// The CA may hold certificates that espm did not issue: their names are not taken.
func TestForeignCertificateIsNotReplaced(t *testing.T) {
	f := newFixture(t)
	key, err := ca.GenerateKey(ca.ECP256)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := f.authority.Sign(self(t), ca.Request{Certname: "legacy.test", Serial: f.authority.NewSerial(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		if _, err := f.Provision(self(t), node.Node{Certname: "legacy.test"}, registry.Spec{}, "", dry); !errors.Is(err, node.ErrForeignCertificate) {
			t.Errorf("validate_only %v: got %v", dry, err)
		}
	}
	if _, err := f.Get(self(t), "legacy.test", ""); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := f.authority.Revoke(self(t), []ca.Target{{Certname: "legacy.test", Serial: node.SerialOf(foreign.SerialNumber)}}); err != nil {
		t.Fatal(err)
	}
	f.provision(t, "legacy.test", "")
}

// The server's own certificate is not revoked because its first answer was lost.
func TestProtectedCertificateIsNotReissued(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	p := f.provision(t, "puppet.test", "r1")
	f.restart()
	if _, err := f.Provision(self(t), node.Node{Certname: "puppet.test"}, registry.Spec{}, "r1", false); !errors.Is(err, node.ErrProtected) {
		t.Errorf("got %v, want ErrProtected", err)
	}
	f.drain(t)
	if n, err := f.Get(self(t), "puppet.test", ""); err != nil || n.Newest() != p.Node.Newest() || f.revoked(t)[n.Newest()] {
		t.Errorf("got %+v, %v", n, err)
	}
}

func TestValidateOnlyRefusesWhatTheCallRefuses(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	f.provision(t, "web1.test", "r1")
	beyond := registry.Spec{TTL: 40 * 365 * 24 * time.Hour}
	for _, test := range []struct {
		name node.Certname
		spec registry.Spec
		id   string
		want error
	}{
		{"web1.test", registry.Spec{}, "r1", nil}, // a retry
		{"web1.test", registry.Spec{}, "", node.ErrNodeExists},
		{"web2.test", registry.Spec{}, "r1", node.ErrRequestReused},
		{"web2.test", beyond, "", node.ErrInvalid},
		{"web2.test", registry.Spec{}, "r2", nil},
	} {
		for _, dry := range []bool{true, false} {
			_, err := f.Provision(self(t), node.Node{Certname: test.name}, test.spec, test.id, dry)
			if !errors.Is(err, test.want) {
				t.Errorf("%s %q, validate_only %v: got %v, want %v", test.name, test.id, dry, err, test.want)
			}
		}
	}
}

// A bundle that is answered again has the CRL of now, not of then.
func TestRepeatedAnswerHasTheLatestCRL(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	f.provision(t, "web1.test", "r1")
	gone := f.provision(t, "web2.test", "")
	f.terminate(t, "web2.test", "", 20*time.Second)
	block, _ := pem.Decode(f.provision(t, "web1.test", "r1").Bundle.CRLPEM)
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil || len(crl.RevokedCertificateEntries) != 1 || node.SerialOf(crl.RevokedCertificateEntries[0].SerialNumber) != gone.Node.Newest() {
		t.Errorf("got %+v, %v", crl, err)
	}
}

// Nodes that leave a group do not make a write to it start over.
func TestGroupWriteWhileMembersLeave(t *testing.T) {
	f := newFixture(t)
	f.group(t, "web", "")
	const members = 200
	for i := range members {
		f.register(t, node.Certname(fmt.Sprintf("n%d.test", i)), "web")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range members {
			if _, err := f.Terminate(node.AsSelf(context.Background()), registry.TerminateRequest{Certname: node.Certname(fmt.Sprintf("n%d.test", i))}, 0, false); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range 10 {
		if _, err := f.UpdateGroup(self(t), "web", 0, setTier(fmt.Sprint(i)), false); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

// A node that stops overriding what its groups disagree on is seen by a group
// write that looked at it before.
func TestOverrideRemovedWhileTheGroupIsWritten(t *testing.T) {
	f := newFixture(t)
	ctx := node.AsSelf(context.Background())
	f.group(t, "a", "1")
	f.group(t, "b", "")
	own := node.Classification{Parameters: map[string]any{"tier": "9"}}
	for round := range 10 {
		name := node.Certname(fmt.Sprintf("n%d.test", round))
		if _, err := f.Register(ctx, node.Node{Certname: name, Groups: []string{"a", "b"}, Classification: own}, "", false); err != nil {
			t.Fatal(err)
		}
		other := registry.New(f.options) // as on another machine: no lock is shared
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = other.Update(ctx, name, registry.Expect{}, func(n *node.Node) error { n.Classification = node.Classification{}; return nil }, false)
		})
		wg.Go(func() { _, _ = f.UpdateGroup(ctx, "b", 0, setTier("2"), false) })
		wg.Wait()
		if _, err := enc.Classify(ctx, f.store, name); err != nil {
			t.Fatal(err)
		}
		f.terminate(t, name, "", 0)
		if _, err := f.UpdateGroup(ctx, "b", 0, func(g *node.Group) error { g.Classification = node.Classification{}; return nil }, false); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUpdateIsFenced(t *testing.T) {
	f := newFixture(t)
	f.register(t, "web1.test")
	edit := func(n *node.Node) error { n.Labels = map[string]string{"a": "b"}; return nil }
	if _, err := f.Update(self(t), "web1.test", registry.Expect{UID: "another"}, edit, false); !errors.Is(err, node.ErrUIDMismatch) {
		t.Errorf("got %v", err)
	}
}

// A certificate that comes with an error was signed at our order for another's
// key: it is revoked, although the authority does not find it for ours.
func TestACertificateThatComesWithAnErrorIsRevoked(t *testing.T) {
	f := newFixture(t)
	var serial node.Serial
	f.authority.sign = func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
		key, err := ca.GenerateKey(ca.ECP256)
		if err != nil {
			return nil, err
		}
		r.Key = key
		cert, err := f.authority.Authority.Sign(ctx, r)
		if err != nil {
			return nil, err
		}
		serial = node.SerialOf(cert.SerialNumber)
		return cert, errors.New("the certificate has another key")
	}
	f.authority.find = func(context.Context, ca.Query) (ca.Found, error) { return ca.Found{}, nil }
	f.run(t)
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false); err == nil {
		t.Error("provisioned")
	}
	f.drain(t)
	if !f.revoked(t)[serial] {
		t.Errorf("%s is in force", serial)
	}
}
