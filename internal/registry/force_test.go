package registry_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// What is forced reaches no certificate but the one that was named.
func TestForceRevokesNoOther(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	victim := f.provision(t, "victim.test", "").Node.Newest()
	stranger := f.sign(t, "stranger.test")
	for alias, name := range map[string]string{"alias1.test": "victim.test", "alias2.test": "stranger.test"} {
		data, err := os.ReadFile(filepath.Join(f.caDir, "signed", name+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(f.caDir, "signed", alias+".pem"), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   node.Certname
		serial node.Serial
		want   error
	}{
		{"alias1.test", "", node.ErrCertificateNotFound},
		{"alias1.test", victim, node.ErrInvalid},
		{"alias2.test", "", node.ErrCertificateNotFound},
		{"alias2.test", stranger, node.ErrCertificateNotFound},
		{"other.test", stranger, node.ErrCertificateNotFound}, // which the inventory names
	} {
		if rev, err := f.Revoke(self(t), registry.RevokeRequest{Certname: c.name, Serial: c.serial, Force: true}, 20*time.Second, false); !errors.Is(err, c.want) {
			t.Errorf("%s %s: got %+v, %v, want %v", c.name, c.serial, rev, err, c.want)
		}
	}
	if n := len(f.revoked(t)); n != 0 {
		t.Errorf("%d are revoked", n)
	}
	// One that stands under its name no more.
	if err := os.Remove(filepath.Join(f.caDir, "signed", "stranger.test.pem")); err != nil {
		t.Fatal(err)
	}
	f.revoke(t, registry.RevokeRequest{Certname: "stranger.test", Serial: stranger, Force: true})
	if !f.revoked(t)[stranger] {
		t.Error("a certificate that the inventory alone knows can't be revoked")
	}
}

// What stands under the name of a registration that ended is that one's: its order is given.
func TestForceOfWhatEspmKnows(t *testing.T) {
	f := newFixture(t)
	f.provision(t, "web1.test", "")
	ordered := f.terminate(t, "web1.test", "", 0).Revocations[0]
	if revs, err := f.Revoke(self(t), registry.RevokeRequest{Certname: "web1.test", Force: true}, 0, false); err != nil || revs[0].ID != ordered.ID {
		t.Errorf("got %+v, %v, want %s", revs, err, ordered.ID)
	}
}

// An import and a forced revocation of the same certificate at once: whoever commits first, no
// live node holds a revoked certificate.
func TestImportBesideForcedRevocation(t *testing.T) {
	f := newFixture(t)
	serial := f.sign(t, "web1.test")
	f.run(t)
	force := registry.RevokeRequest{Certname: "web1.test", Force: true}
	f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
		f.engine.onCommit(nil)
		f.revoke(t, force)
		return f.engine.Engine.Commit(ctx, b)
	})
	if got := f.doImport(t, registry.ImportSpec{Certnames: []string{"web1.test"}})["web1.test"]; got.Outcome != registry.Skipped || got.Reason != "espm has revoked it" {
		t.Errorf("imported: %+v", got)
	}
	cert, err := f.store.Certificate(self(t), serial)
	if err != nil || cert.Receipt == nil || cert.UID != "" {
		t.Errorf("its record: %+v, %v", cert, err)
	}

	serial = f.sign(t, "web2.test")
	f.engine.onCommit(func(ctx context.Context, b store.Batch) (int64, error) {
		f.engine.onCommit(nil)
		f.doImport(t, registry.ImportSpec{Certnames: []string{"web2.test"}})
		return f.engine.Engine.Commit(ctx, b)
	})
	force.Certname = "web2.test"
	f.revoke(t, force)
	if n, err := f.Get(self(t), "web2.test", ""); err != nil || n.Newest() != "" || !f.revoked(t)[serial] {
		t.Errorf("the node: %+v, %v", n, err)
	}
}

// A forced order that was dropped leaves nothing behind: the certificate can be imported.
func TestImportAfterADroppedForcedRevocation(t *testing.T) {
	f := newFixture(t)
	serial := f.sign(t, "web1.test")
	revs, err := f.Revoke(self(t), registry.RevokeRequest{Certname: "web1.test", Force: true}, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	rev := revs[0]
	if got := f.doImport(t, registry.ImportSpec{})["web1.test"]; got.Outcome != registry.Skipped {
		t.Errorf("imported: %+v", got)
	}
	if _, err := f.DropRevocation(self(t), rev.ID, "it is ours"); err != nil {
		t.Fatal(err)
	}
	f.doImport(t, registry.ImportSpec{})
	f.held(t, "web1.test", serial)
}

// A CRL that came back from a backup lacks what was revoked since: force orders it anew.
func TestForceRevokesWhatALostCRLHadListed(t *testing.T) {
	f := newFixture(t)
	crl := filepath.Join(f.caDir, "ca_crl.pem")
	old, err := os.ReadFile(crl)
	if err != nil {
		t.Fatal(err)
	}
	p := f.provision(t, "web1.test", "")
	f.run(t)
	first := f.terminate(t, "web1.test", "", 20*time.Second).Revocations[0]
	f.authority.Authority.(*directory.Authority).Close()
	if err := errors.Join(os.RemoveAll(filepath.Join(f.caDir, "espm_crl_number")), os.WriteFile(crl, old, 0o644)); err != nil {
		t.Fatal(err)
	}
	again, err := directory.Open(f.caDir, directory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	f.authority.Authority = again
	if rev := f.revoke(t, registry.RevokeRequest{Serial: p.Node.Newest()}); rev.ID != first.ID || f.revoked(t)[p.Node.Newest()] {
		t.Errorf("without force: %+v", rev)
	}
	if rev := f.revoke(t, registry.RevokeRequest{Serial: p.Node.Newest(), Force: true}); rev.ID == first.ID || rev.Receipt == nil || !f.revoked(t)[p.Node.Newest()] {
		t.Errorf("by force: %+v", rev)
	}
}
