package registry_test

import (
	"errors"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

func TestIssueForARegisteredNode(t *testing.T) {
	f := newFixture(t)
	n, err := f.Register(self(t), node.Node{Certname: "web1.test"}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Issue(self(t), "web1.test", "another", registry.Spec{}, "", false); !errors.Is(err, node.ErrUIDMismatch) {
		t.Errorf("another uid: got %v", err)
	}
	p, err := f.Issue(self(t), "web1.test", n.UID, registry.Spec{CSRPEM: newCSR(t, "web1.test")}, "r1", false)
	if err != nil || p.Node.State != node.Provisioned || !p.Bundle.PrivateKeyPEM.IsZero() {
		t.Fatalf("got %+v, %v", p.Node, err)
	}
	if _, err := f.Issue(self(t), "web1.test", n.UID, registry.Spec{}, "", false); !errors.Is(err, node.ErrCertificateExists) {
		t.Errorf("a second certificate: got %v", err)
	}
	if _, err := f.Issue(self(t), "web2.test", "", registry.Spec{}, "", false); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("an unknown node: got %v", err)
	}
}

func TestFailedIssueLeavesTheNode(t *testing.T) {
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			f := newFixture(t)
			f.run(t)
			if _, err := f.Register(self(t), node.Node{Certname: "web1.test"}, "", false); err != nil {
				t.Fatal(err)
			}
			f.failSign(fault.applied)
			if _, err := f.Issue(self(t), "web1.test", "", registry.Spec{}, "r1", false); !errors.Is(err, node.ErrUnavailable) {
				t.Fatalf("got %v", err)
			}
			f.drain(t)
			f.authority.heal()
			n, err := f.Get(self(t), "web1.test", "")
			if err != nil || n.State != node.Registered {
				t.Fatalf("got %+v, %v", n, err)
			}
			p, err := f.Issue(self(t), "web1.test", "", registry.Spec{}, "r1", false)
			if err != nil || f.revoked(t)[p.Node.Newest()] {
				t.Errorf("the retry: %v", err)
			}
		})
	}
}

func TestTTLBeyondTheCA(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	_, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{TTL: 40 * 365 * 24 * 3600e9}, "", false)
	if !errors.Is(err, node.ErrInvalid) {
		t.Fatalf("got %v, want ErrInvalid", err)
	}
	f.drain(t)
	f.provision(t, "web1.test", "")
}
