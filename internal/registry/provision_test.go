package registry_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

var errLost = fmt.Errorf("%w: the answer was lost", node.ErrUnavailable)

// What Sign may do when it fails: nothing, or everything but answer.
var faults = []struct {
	name    string
	applied bool
}{{"not applied", false}, {"applied anyway", true}}

func (f *fixture) failSign(applied bool) {
	f.authority.sign = func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
		if applied {
			if _, err := f.authority.Authority.Sign(ctx, r); err != nil {
				return nil, err
			}
		}
		return nil, errLost
	}
}

func TestProvisionIsAllOrNothing(t *testing.T) {
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			f := newFixture(t)
			f.run(t)
			f.failSign(fault.applied)
			_, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false)
			if !errors.Is(err, node.ErrUnavailable) {
				t.Fatalf("got %v, want ErrUnavailable", err)
			}
			f.drain(t)
			if _, err := f.Get(self(t), "web1.test", ""); !errors.Is(err, node.ErrNodeNotFound) {
				t.Errorf("the failed registration stays: %v", err)
			}
			if got := len(f.revoked(t)); got != map[bool]int{false: 0, true: 1}[fault.applied] {
				t.Errorf("%d certificates are revoked", got)
			}
			// The name and the request id are free again.
			f.authority.heal()
			p := f.provision(t, "web1.test", "r1")
			if f.revoked(t)[p.Node.Newest()] {
				t.Error("the second certificate is revoked")
			}
		})
	}
}

func TestCallersCertificateIsAdopted(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	spec := registry.Spec{CSRPEM: newCSR(t, "web1.test")}
	f.failSign(true)
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, spec, "r1", false); err == nil {
		t.Fatal("the fault did not show")
	}
	f.authority.heal()
	f.drain(t)
	n, err := f.Get(self(t), "web1.test", "")
	if err != nil || n.State != node.Provisioned {
		t.Fatalf("got %+v, %v", n, err)
	}
	p, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, spec, "r1", false)
	if err != nil || p.Node.Newest() != n.Newest() || len(p.Bundle.CertificatePEM) == 0 {
		t.Errorf("the retry got serial %s, %v; want %s", p.Node.Newest(), err, n.Newest())
	}
	if len(f.revoked(t)) != 0 {
		t.Error("a certificate that its caller can use was revoked")
	}
}

func TestIntentWaitsForTheAuthority(t *testing.T) {
	f := newFixture(t)
	f.failSign(true)
	f.authority.find = func(context.Context, ca.Query) (ca.Found, error) { return ca.Found{}, errLost }
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false); err == nil {
		t.Fatal("the fault did not show")
	}
	n, err := f.Get(self(t), "web1.test", "")
	if err != nil || n.State != node.Issuing {
		t.Fatalf("got %+v, %v", n, err)
	}
	// A retry can't go on before the first try is settled, and does then.
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	f.authority.heal()
	f.restart()
	p := f.provision(t, "web1.test", "r1")
	f.run(t)
	f.drain(t)
	if revoked := f.revoked(t); len(revoked) != 1 || revoked[p.Node.Newest()] {
		t.Errorf("revoked %v; the live one is %s", revoked, p.Node.Newest())
	}
}

// signForAnother signs a certificate for a key that nobody has.
func (f *fixture) signForAnother(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	other, err := ca.GenerateKey(ca.ECP256)
	if err != nil {
		return nil, err
	}
	r.Key = other
	return f.authority.Authority.Sign(ctx, r)
}

func TestCertificateOfAnotherIsRefused(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	f.authority.sign = f.signForAnother
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false); err == nil {
		t.Fatal("a certificate for another key was accepted")
	}
	f.drain(t)
	if len(f.revoked(t)) != 1 {
		t.Errorf("revoked %v, want the one that was refused", f.revoked(t))
	}
	if _, err := f.Get(self(t), "web1.test", ""); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("got %v", err)
	}
}

// formChecker is an authority that finds out when it signs that a name is taken.
type formChecker struct {
	*authority
	formErr error
}

func (c *formChecker) CheckForm(context.Context, ca.Request) error { return c.formErr }

func (c *formChecker) Check(context.Context, ca.Request) (*x509.Certificate, error) {
	return nil, errors.New("asked twice")
}

func TestAnAuthorityThatLooksWhenItSignsIsNotAskedBefore(t *testing.T) {
	f := newFixture(t)
	checker := &formChecker{authority: f.authority}
	f.options.Authority = checker
	f.restart()
	f.provision(t, "web1.test", "")
	f.authority.sign = func(context.Context, ca.Request) (*x509.Certificate, error) { return nil, node.ErrForeignRequest }
	spec := func() error {
		_, err := f.Provision(self(t), node.Node{Certname: "web2.test"}, registry.Spec{}, "r2", false)
		return err
	}
	if err := spec(); !errors.Is(err, node.ErrForeignRequest) {
		t.Errorf("a name that is taken: %v", err)
	}
	f.authority.heal()
	checker.formErr = node.Invalid("ttl", "is too long")
	if err := spec(); !errors.Is(err, node.ErrInvalid) {
		t.Errorf("a request that can't be: %v", err)
	}
	if _, err := f.Get(self(t), "web2.test", ""); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("the name is not free: %v", err)
	}
	checker.formErr = nil
	f.provision(t, "web2.test", "r2")
}

func TestPanicInTheAuthority(t *testing.T) {
	f := newFixture(t)
	f.authority.sign = func(context.Context, ca.Request) (*x509.Certificate, error) { panic("boom") }
	for name, id := range map[node.Certname]string{"web1.test": "", "web2.test": "r1"} {
		if _, err := f.Provision(self(t), node.Node{Certname: name}, registry.Spec{}, id, false); err == nil {
			t.Fatal("no error")
		}
	}
	f.authority.heal()
	f.run(t) // settles what the calls left open
	f.drain(t)
	f.provision(t, "web1.test", "")
	f.provision(t, "web2.test", "r1")
}

func TestTerminatedWhileIssuing(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	signing, signed := make(chan struct{}), make(chan struct{})
	f.authority.sign = func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
		close(signing)
		<-signed
		return f.authority.Authority.Sign(ctx, r)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := f.Provision(node.AsSelf(context.Background()), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false)
		failed <- err
	}()
	<-signing
	if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web1.test", Reason: node.AffiliationChanged}, 0, false); err != nil {
		t.Fatal(err)
	}
	close(signed)
	if err := <-failed; !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("the provision got %v, want ErrNodeNotFound", err)
	}
	f.drain(t)
	if len(f.revoked(t)) != 1 {
		t.Error("the certificate of the terminated node is alive")
	}
	got, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web1.test"}, 0, false)
	if err != nil || len(got.Revocations) != 1 || got.Revocations[0].Reason != node.AffiliationChanged {
		t.Errorf("the terminate asked again: %+v, %v", got, err)
	}
}

func TestRequestID(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	first := f.provision(t, "web1.test", "r1")
	if again := f.provision(t, "web1.test", "r1"); string(again.Bundle.PrivateKeyPEM.Bytes()) != string(first.Bundle.PrivateKeyPEM.Bytes()) || again.Node.Newest() != first.Node.Newest() {
		t.Error("a retry within minutes got another bundle")
	}
	_, err := f.Provision(self(t), node.Node{Certname: "web1.test", Labels: map[string]string{"a": "b"}}, registry.Spec{}, "r1", false)
	if !errors.Is(err, node.ErrRequestReused) {
		t.Errorf("other content: got %v, want ErrRequestReused", err)
	}
	_, err = f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "r2", false)
	if !errors.Is(err, node.ErrNodeExists) {
		t.Errorf("another id: got %v, want ErrNodeExists", err)
	}

	f.clock.advance(11 * time.Minute)
	later := f.provision(t, "web1.test", "r1")
	if later.Node.Newest() == first.Node.Newest() || later.Node.UID != first.Node.UID {
		t.Errorf("after ten minutes: serial %s uid %s; before: %s %s", later.Node.Newest(), later.Node.UID, first.Node.Newest(), first.Node.UID)
	}
	f.drain(t)
	if revoked := f.revoked(t); !revoked[first.Node.Newest()] || revoked[later.Node.Newest()] {
		t.Errorf("revoked %v: want the first, %s, alone", revoked, first.Node.Newest())
	}
	if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web1.test"}, 0, false); err != nil {
		t.Fatal(err)
	}
	_, err = f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false)
	if !errors.Is(err, node.ErrRequestSpent) {
		t.Errorf("after the terminate: got %v, want ErrRequestSpent", err)
	}
}

func TestCallsAtOnceAreOne(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	got := make([]registry.Provisioned, 16)
	for i := range got {
		wg.Go(func() {
			var err error
			got[i], err = f.Provision(node.AsSelf(context.Background()), node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, p := range got {
		if p.Node.Newest() != got[0].Node.Newest() || string(p.Bundle.PrivateKeyPEM.Bytes()) != string(got[0].Bundle.PrivateKeyPEM.Bytes()) {
			t.Fatal("callers got different certificates")
		}
	}
	if made := f.keys.made.Load(); made != 1 {
		t.Errorf("%d keys were made", made)
	}
}

func TestNoKeyIsMadeForARefusedCall(t *testing.T) {
	f := newFixture(t)
	f.provision(t, "web1.test", "")
	made := f.keys.made.Load()
	_, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false)
	if !errors.Is(err, node.ErrNodeExists) || f.keys.made.Load() != made {
		t.Errorf("got %v, after %d keys", err, f.keys.made.Load()-made)
	}
}

func TestTheCallGoesOnWithoutItsCaller(t *testing.T) {
	f := newFixture(t)
	signing, signed := make(chan struct{}), make(chan struct{})
	f.authority.sign = func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
		close(signing)
		<-signed
		return f.authority.Authority.Sign(ctx, r)
	}
	ctx, cancel := context.WithCancel(self(t))
	gone := make(chan error, 1)
	go func() {
		_, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false)
		gone <- err
	}()
	<-signing
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	close(signed)
	p := f.provision(t, "web1.test", "r1")
	if len(p.Bundle.PrivateKeyPEM.Bytes()) == 0 || f.keys.made.Load() != 1 {
		t.Errorf("the retry did not get the first call's bundle: %d keys made", f.keys.made.Load())
	}
}
