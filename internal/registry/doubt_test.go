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
	"github.com/espm-project/espm/internal/store"
)

// hang makes the store's disk hang until the function that it returns is called.
func (f *fixture) hang() (release func()) {
	f.store.Bound = 300 * time.Millisecond
	f.disk.Lock()
	return func() {
		f.disk.Unlock()
		f.store.Bound = time.Minute
	}
}

// A provision whose first commit hangs ends within the bound. The caller
// comes back with its request id, and the node has one certificate.
func TestProvisionInDoubt(t *testing.T) {
	f := newFixture(t)
	ctx := self(t)
	release := f.hang()
	n := node.Node{Certname: "web01.test"}
	_, err := f.Provision(ctx, n, registry.Spec{}, "r1", false)
	if !errors.Is(err, store.ErrUnknownOutcome) || !errors.Is(err, node.ErrUnavailable) {
		t.Fatalf("the disk hangs: got %v, want ErrUnknownOutcome and ErrUnavailable", err)
	}
	release()
	p, err := f.Provision(ctx, n, registry.Spec{}, "r1", false)
	if err != nil {
		t.Fatal(err)
	}
	if p.Node.State != node.Provisioned {
		t.Errorf("the node is %s", p.Node.State)
	}
	if _, open, err := f.store.Intent(ctx, p.Node.UID); open || err != nil {
		t.Errorf("an intent is open: %v, %v", open, err)
	}
}

// A provision whose last commit hangs is settled: the certificate is the node's, or it is revoked.
func TestIssueInDoubt(t *testing.T) {
	f := newFixture(t)
	ctx := self(t)
	var release func()
	f.authority.sign = func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
		cert, err := f.authority.Authority.Sign(ctx, r)
		release = f.hang()
		return cert, err
	}
	n := node.Node{Certname: "web01.test"}
	_, err := f.Provision(ctx, n, registry.Spec{}, "r1", false)
	if !errors.Is(err, store.ErrUnknownOutcome) {
		t.Fatalf("the disk hangs: got %v, want ErrUnknownOutcome", err)
	}
	f.authority.heal()
	release()
	p, err := f.Provision(ctx, n, registry.Spec{}, "r1", false)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := f.store.CertificatesOfLife(ctx, p.Node.Certname, p.Node.UID)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range certs {
		if (c.Revocation == "") != (c.Serial == p.Node.Newest()) {
			t.Errorf("certificate %s of a node that holds %s has the revocation %q", c.Serial, p.Node.Newest(), c.Revocation)
		}
	}
}
