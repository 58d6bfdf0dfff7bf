package registry_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/test/need"
)

// signFile has the CA sign a certificate that espm knows nothing of, and keeps it in a file.
func (f *fixture) signFile(t *testing.T, name node.Certname) (node.Serial, string) {
	t.Helper()
	serial := f.sign(t, name)
	text, err := os.ReadFile(filepath.Join(f.caDir, "signed", string(name)+".pem"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), string(serial)+".pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return serial, path
}

// opensslRevoked asks OpenSSL, as an agent does, whether a certificate is revoked.
func (f *fixture) opensslRevoked(t *testing.T, path string) bool {
	t.Helper()
	need.Program(t, "openssl")
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-crl_check_all", "-attime", fmt.Sprint(f.clock.Now().Unix()+1),
		"-CAfile", filepath.Join(f.caDir, "ca_crt.pem"), "-CRLfile", filepath.Join(f.caDir, "ca_crl.pem"), path).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "certificate revoked") {
		t.Fatalf("openssl verify: %v\n%s", err, out)
	}
	return err != nil
}

// importAll imports everything and returns the outcomes of each serial.
func (f *fixture) importAll(t *testing.T) map[node.Serial]registry.Outcome {
	t.Helper()
	outcomes := map[node.Serial]registry.Outcome{}
	err := f.Import(self(t), registry.ImportSpec{}, func(done []registry.Imported, _ int) error {
		for _, in := range done {
			outcomes[in.Serial] = in.Outcome
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return outcomes
}

// A name that was signed for twice, with the first never revoked, becomes one node with two certificates. Its
// terminate revokes both.
func TestImportOfTwo(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	first, firstPath := f.signFile(t, "web1.test")
	second, secondPath := f.signFile(t, "web1.test")
	f.sign(t, "web2.test")
	got := f.importAll(t)
	if got[first] != registry.Adopted || got[second] != registry.Adopted || len(got) != 3 {
		t.Fatalf("got %v, want %s and %s", got, first, second)
	}
	n := f.held(t, "web1.test", second)
	if !slices.Equal(n.Serials, []node.Serial{second, first}) {
		t.Errorf("it holds %v, want %s before %s", n.Serials, second, first)
	}
	for _, serial := range n.Serials {
		cert, err := f.store.Certificate(self(t), serial)
		if err != nil || cert.UID != n.UID || cert.Owner != n.Owner || cert.ImportedAt.IsZero() || cert.NotAfter.IsZero() || (cert.PEM == "") != (serial == first) {
			t.Errorf("%s: %+v, %v", serial, cert, err)
		}
	}
	if got := f.importAll(t); got[first] != registry.Already || got[second] != registry.Already {
		t.Errorf("the second time: %v", got)
	}
	if f.opensslRevoked(t, firstPath) || f.opensslRevoked(t, secondPath) {
		t.Error("the import revoked something")
	}
	gone := f.terminate(t, "web1.test", n.UID, 20*time.Second)
	if len(gone.Revocations) != 2 || gone.Revocations[0].Receipt == nil || gone.Revocations[1].Receipt == nil {
		t.Errorf("terminated: %+v", gone.Revocations)
	}
	if !f.opensslRevoked(t, firstPath) || !f.opensslRevoked(t, secondPath) {
		t.Error("a certificate of the terminated node is not revoked")
	}
	if again := f.importAll(t); len(again) != 1 {
		t.Errorf("after the terminate: %v", again)
	}
}

// A node gets what else the CA has of its name beside its own. A revocation by name takes both, one by serial that one.
func TestImportBesideItsOwn(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	own := f.provision(t, "web1.test", "").Node
	foreign := f.sign(t, "web1.test")
	if got := f.importAll(t); got[foreign] != registry.Adopted || got[own.Newest()] != registry.Already {
		t.Fatalf("got %v", got)
	}
	n := f.held(t, "web1.test", foreign)
	if n.UID != own.UID || !n.Holds(own.Newest()) || len(n.Serials) != 2 {
		t.Errorf("got %+v", n)
	}
	if rev := f.revoke(t, registry.RevokeRequest{Serial: foreign}); rev.Receipt == nil {
		t.Errorf("got %+v", rev)
	}
	f.held(t, "web1.test", own.Newest())
	if revoked := f.revoked(t); !revoked[foreign] || revoked[own.Newest()] {
		t.Errorf("revoked by serial: %v", revoked)
	}
	third := f.sign(t, "web1.test")
	f.importAll(t)
	revs, err := f.Revoke(self(t), registry.RevokeRequest{Certname: "web1.test", Reason: node.Superseded}, 20*time.Second, false)
	if err != nil || len(revs) != 2 || revs[0].Serial != third || revs[1].Serial != own.Newest() || revs[0].Receipt == nil || revs[1].Receipt == nil {
		t.Errorf("revoked by name: %+v, %v", revs, err)
	}
	if n, err := f.Get(self(t), "web1.test", ""); err != nil || n.State != node.Registered || n.Newest() != "" {
		t.Errorf("the node: %+v, %v", n, err)
	}
}

// Serials that the inventory has under two names are nobody's: to revoke one would reach the other's.
func TestImportOfAnAmbiguousSerial(t *testing.T) {
	f := newFixture(t)
	victim := f.sign(t, "victim.test")
	f.sign(t, "web1.test")
	inventory, err := os.OpenFile(filepath.Join(f.caDir, "inventory.txt"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(inventory, "0x%s 2026-01-02T03:04:05UTC 2099-01-02T03:04:05UTC /CN=web1.test\n", victim)
	fmt.Fprint(inventory, "0x0abc 2026-01-02T03:04:05GMT 2099-01-02T03:04:05GMT /CN=web1.test\n0x0def 2011-01-02T03:04:05UTC 2016-01-02T03:04:05UTC /CN=web1.test\n")
	if err := inventory.Close(); err != nil {
		t.Fatal(err)
	}
	f.importAll(t)
	n, err := f.Get(self(t), "web1.test", "")
	if err != nil || len(n.Serials) != 2 || !n.Holds("0ABC") || n.Holds(victim) {
		t.Errorf("got %+v, %v", n, err)
	}
}

// oldServer revokes as Puppet Server 7.9 does: by name, what stands in signed/ alone.
func (f *fixture) oldServer(t *testing.T) {
	t.Helper()
	f.authority.mu.Lock()
	defer f.authority.mu.Unlock()
	f.authority.byName = true
	f.authority.revoke = func(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
		receipts := make([]node.Receipt, len(targets))
		refused := &ca.RefusedError{Targets: make([]error, len(targets))}
		for i, target := range targets {
			text, err := os.ReadFile(filepath.Join(f.caDir, "signed", string(target.Certname)+".pem"))
			block, _ := pem.Decode(text)
			if err == nil && block != nil {
				stands, err := f.authority.Authority.Check(ctx, ca.Request{Certname: target.Certname})
				if err != nil {
					return nil, err
				}
				if stands != nil && node.SerialOf(stands.SerialNumber) == target.Serial {
					one, err := f.authority.Authority.Revoke(ctx, []ca.Target{target})
					if err != nil {
						return nil, err
					}
					receipts[i] = one[0]
					continue
				}
			}
			refused.Targets[i] = fmt.Errorf("serial %s: %w: it does not stand in signed/", target.Serial, ca.ErrImpossible)
		}
		if errors.Join(refused.Targets...) != nil {
			return receipts, refused
		}
		return receipts, nil
	}
}

// Where the CA can revoke one of two alone, the terminate says which it could not, and a successor is not held up.
func TestTerminateOfTwoAtAnOldServer(t *testing.T) {
	f := newFixture(t)
	first := f.sign(t, "web1.test")
	second := f.sign(t, "web1.test")
	f.importAll(t)
	f.oldServer(t)
	f.run(t)
	if _, err := f.Revoke(self(t), registry.RevokeRequest{Serial: first}, 0, false); !errors.Is(err, node.ErrInvalid) || !strings.Contains(err.Error(), "by name") {
		t.Errorf("one of two, by an authority that revokes by name: %v", err)
	}
	gone := f.terminate(t, "web1.test", "", 20*time.Second)
	states := map[node.Serial]node.Revocation{}
	for _, r := range gone.Revocations {
		states[r.Serial] = r
	}
	if states[second].Receipt == nil || states[first].Receipt != nil || states[first].Impossible == nil {
		t.Fatalf("got %+v", gone.Revocations)
	}
	if revoked := f.revoked(t); !revoked[second] || revoked[first] {
		t.Errorf("revoked: %v", revoked)
	}
	ctx, cancel := context.WithTimeout(self(t), 20*time.Second)
	defer cancel()
	next, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, registry.Spec{}, "", false)
	if err != nil || next.Node.Newest() == "" {
		t.Errorf("the successor: %+v, %v", next.Node, err)
	}
	f.clock.advance(31 * 24 * time.Hour)
	if err := f.Sweep(self(t)); err != nil {
		t.Fatal(err)
	}
	if cert, err := f.store.Certificate(self(t), first); err != nil || !cert.Impossible {
		t.Errorf("a valid certificate is forgotten: %+v, %v", cert, err)
	}
}

// A revocation that was dropped gives its certificate back beside the newer one.
func TestDropBesideANewerOne(t *testing.T) {
	f := newFixture(t)
	first := f.provision(t, "web1.test", "").Node
	var second node.Node
	f.revokeAndDrop(t, "web1.test", func() {
		p, err := f.Issue(self(t), "web1.test", "", registry.Spec{}, "", false)
		if err != nil {
			t.Fatal(err)
		}
		second = p.Node
	})
	n := f.held(t, "web1.test", second.Newest())
	if !slices.Equal(n.Serials, []node.Serial{second.Newest(), first.Newest()}) {
		t.Errorf("it holds %v", n.Serials)
	}
}
