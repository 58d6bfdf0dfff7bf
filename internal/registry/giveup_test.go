package registry_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// A forgotten node is as before an import: its certificate stays valid, espm has no record of it, and can adopt it again.
func TestForget(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	p := f.provision(t, "web1.test", "launch")
	serial := p.Node.Newest()

	before := f.revision(t)
	if n, given, err := f.Forget(self(t), "web1.test", p.Node.UID, true); err != nil || n.State != node.Terminated || len(given) != 1 || f.revision(t) != before {
		t.Errorf("a dry run: %+v, %+v, %v", n, given, err)
	}
	n, given, err := f.Forget(self(t), "web1.test", p.Node.UID, false)
	if err != nil || n.State != node.Terminated || len(given) != 1 || given[0].Serial != serial || n.TerminatedFor == "" {
		t.Fatalf("got %+v, %+v, %v", n, given, err)
	}
	if _, err := f.store.Node(self(t), "web1.test"); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := f.store.Certificate(self(t), serial); !errors.Is(err, node.ErrCertificateNotFound) {
		t.Errorf("its certificate is still recorded: %v", err)
	}
	f.drain(t)
	if f.revoked(t)[serial] {
		t.Error("its certificate is revoked")
	}
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false); !errors.Is(err, node.ErrForeignCertificate) {
		t.Errorf("the name is issued another certificate beside it: %v", err)
	}
	// A late terminate of the forgotten registration is told what became of it, and revokes nothing.
	if gone, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web1.test", UID: p.Node.UID}, 0, false); err != nil || len(gone.Revocations) > 0 || !strings.Contains(gone.Node.TerminatedFor, "not revoked") {
		t.Errorf("a late terminate: %+v, %v", gone, err)
	}

	if got := f.doImport(t, registry.ImportSpec{Certnames: []string{"web1.test"}})["web1.test"]; got.Outcome != registry.Adopted {
		t.Fatalf("imported again: %+v", got)
	}
	again := f.held(t, "web1.test", serial)
	if _, _, err := f.Forget(self(t), "web1.test", p.Node.UID, false); !errors.Is(err, node.ErrUIDMismatch) {
		t.Errorf("an earlier registration is forgotten: %v", err)
	}
	f.terminate(t, "web1.test", again.UID, 0)
	f.drain(t)
	if !f.revoked(t)[serial] {
		t.Error("a terminate after the second import does not revoke it")
	}
	if _, _, err := f.Forget(self(t), "web1.test", "", false); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("a terminated node is forgotten: %v", err)
	}
	if _, _, err := f.Forget(admin(t), "puppet.test", "", false); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("an admin: %v", err)
	}
	if _, _, err := f.Forget(by(t, "token:ci"), "web1.test", "", false); !errors.Is(err, node.ErrNotPermitted) {
		t.Errorf("a provisioner: %v", err)
	}
}

// What is ordered already is carried out, and its records stay for that.
func TestForgetKeepsOrders(t *testing.T) {
	f := newFixture(t)
	p := f.provision(t, "web1.test", "")
	if _, err := f.Revoke(self(t), registry.RevokeRequest{Serial: p.Node.Newest()}, 0, false); err != nil {
		t.Fatal(err)
	}
	if _, given, err := f.Forget(self(t), "web1.test", "", false); err != nil || len(given) > 0 {
		t.Fatalf("got %+v, %v", given, err)
	}
	f.run(t)
	f.drain(t)
	if !f.revoked(t)[p.Node.Newest()] {
		t.Error("the order is lost")
	}
}

// An import says what the ENC answers before and after. It leaves alone what another ENC classifies, unless it is told otherwise.
func TestImportKeepsClassifications(t *testing.T) {
	f := newFixture(t)
	if _, err := f.CreateGroup(self(t), node.Group{Name: "old", Classification: node.Classification{Environment: "old"}}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Register(self(t), node.Node{Certname: "known.test", Groups: []string{"old"}}, "", false); err != nil {
		t.Fatal(err)
	}
	f.sign(t, "known.test")
	serial := f.sign(t, "web1.test")
	const empty, old = "---\nclasses: {}\n", "---\nenvironment: \"old\"\nclasses: {}\n"
	spec := registry.ImportSpec{ValidateOnly: true}
	for _, test := range []struct {
		settings store.ENCSettings
		before   registry.ENCAnswer
		outcome  registry.Outcome
	}{
		{store.ENCSettings{UnknownNodes: "fail"}, registry.ENCAnswer{}, registry.WouldAdopt},
		{store.ENCSettings{UnknownNodes: "empty"}, registry.ENCAnswer{YAML: empty}, registry.WouldAdopt},
		{store.ENCSettings{UnknownNodes: "command", Command: "/opt/other --all"}, registry.ENCAnswer{Command: "/opt/other --all"}, registry.Skipped},
	} {
		if err := f.store.SetENC(self(t), test.settings); err != nil {
			t.Fatal(err)
		}
		all := f.doImport(t, spec)
		got := all["web1.test"]
		if got.Outcome != test.outcome || got.Before == nil || *got.Before != test.before || got.After == nil || got.After.YAML != empty {
			t.Errorf("with %+v: got %+v, before %+v, after %+v", test.settings, got, got.Before, got.After)
		}
		if got := all["known.test"]; got.Outcome != registry.WouldAdopt || got.Before.YAML != old || *got.Before != *got.After {
			t.Errorf("with %+v: what espm classifies: %+v, before %+v, want %q", test.settings, got, got.Before, old)
		}
	}
	spec = registry.ImportSpec{Certnames: []string{"web1.test"}}
	if got := f.doImport(t, spec)["web1.test"]; got.Outcome != registry.Skipped || !strings.Contains(got.Reason, "/opt/other --all") {
		t.Errorf("imported, and its classification lost: %+v", got)
	}
	if _, err := f.store.Node(self(t), "web1.test"); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("registered nevertheless: %v", err)
	}
	spec.LoseClassification = true
	if got := f.doImport(t, spec)["web1.test"]; got.Outcome != registry.Adopted {
		t.Errorf("told to: %+v", got)
	}
	f.held(t, "web1.test", serial)
}
