package registry_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/test/oldca"
)

// TestWeakSignature: a certificate that the CA signed with SHA-1 is imported, with a warning, and revoked like
// any other, imported or not.
func TestWeakSignature(t *testing.T) {
	f := newFixture(t)
	for name, hash := range map[string]string{"sha1.test": "-sha1", "other.test": "-sha1", "good.test": "-sha256"} {
		oldca.Leaf(t, f.caDir, name, oldca.RSAKey(), hash)
	}
	got := f.doImport(t, registry.ImportSpec{Certnames: []string{"good.test", "sha1.test"}})
	if in := got["good.test"]; in.Outcome != registry.Adopted || in.Reason != "" {
		t.Errorf("good.test: %+v", in)
	}
	if in := got["sha1.test"]; in.Outcome != registry.Adopted || !strings.Contains(in.Reason, "SHA-1") {
		t.Errorf("sha1.test: %+v", in)
	}
	f.run(t)
	for _, name := range []node.Certname{"sha1.test", "other.test"} {
		if rev := f.revoke(t, registry.RevokeRequest{Certname: name, Force: true}); rev.Receipt == nil {
			t.Errorf("%s: %+v", name, rev)
		}
	}
}

// TestUnreadableCertificate: a certificate of the CA that crypto/x509 can't read keeps its name from being
// provisioned until it is revoked by its serial. One that another CA signed can't be revoked so.
func TestUnreadableCertificate(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	oldca.Leaf(t, f.caDir, "curve.test", oldca.BrainpoolKey(), "-set_serial", "291")
	other := oldca.Make(t, oldca.SHA1)
	oldca.Leaf(t, other, "strange.test", oldca.BrainpoolKey(), "-set_serial", "292")
	data, err := os.ReadFile(filepath.Join(other, "signed/strange.test.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(f.caDir, "signed/strange.test.pem"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	provision := func(name node.Certname) error {
		_, err := f.Provision(self(t), node.Node{Certname: name}, registry.Spec{}, "", false)
		return err
	}
	for _, name := range []node.Certname{"curve.test", "strange.test"} {
		if err := provision(name); !errors.Is(err, node.ErrForeignCertificate) {
			t.Errorf("%s: provisioned over a certificate that may be in force: %v", name, err)
		}
	}
	for _, c := range []struct {
		req  registry.RevokeRequest
		want error
	}{
		{registry.RevokeRequest{Certname: "curve.test", Force: true}, node.ErrForeignCertificate},
		{registry.RevokeRequest{Certname: "curve.test", Serial: "0124", Force: true}, node.ErrCertificateNotFound},
		{registry.RevokeRequest{Certname: "strange.test", Serial: "0124", Force: true}, node.ErrCertificateNotFound},
	} {
		if _, err := f.Revoke(self(t), c.req, 0, false); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.req, err, c.want)
		}
	}
	if rev := f.revoke(t, registry.RevokeRequest{Certname: "curve.test", Serial: "0123", Force: true}); rev.Receipt == nil || !f.revoked(t)["0123"] {
		t.Errorf("curve.test: %+v", rev)
	}
	if err := provision("curve.test"); err != nil {
		t.Errorf("after its revocation: %v", err)
	}
}
