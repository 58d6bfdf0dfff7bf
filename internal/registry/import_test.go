package registry_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// sign has the CA sign a certificate that espm knows nothing of.
func (f *fixture) sign(t *testing.T, name node.Certname) node.Serial {
	t.Helper()
	key, err := ca.GenerateKey(ca.ECP256)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := f.authority.Authority.Sign(self(t), ca.Request{Certname: name, Serial: f.authority.NewSerial(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return node.SerialOf(cert.SerialNumber)
}

// signMany signs for name000 and so on, at once.
func (f *fixture) signMany(t *testing.T, name string, n int) map[string]node.Serial {
	t.Helper()
	serials := make([]node.Serial, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { serials[i] = f.sign(t, node.Certname(fmt.Sprintf("%s%03d.test", name, i))) })
	}
	wg.Wait()
	out := map[string]node.Serial{}
	for i, s := range serials {
		out[fmt.Sprintf("%s%03d.test", name, i)] = s
	}
	return out
}

func (f *fixture) doImport(t *testing.T, s registry.ImportSpec) map[string]registry.Imported {
	t.Helper()
	all := map[string]registry.Imported{}
	var order []string
	err := f.Import(self(t), s, func(done []registry.Imported, total int) error {
		for _, in := range done {
			if _, more := all[in.Certname]; !more { // the one that stands there is first
				all[in.Certname] = in
			}
			order = append(order, in.Certname)
		}
		if len(all) > total {
			t.Errorf("%d names, of %d", len(all), total)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(order) {
		t.Errorf("not in order: %q", order)
	}
	return all
}

// revision tells whether anything was written.
func (f *fixture) revision(t *testing.T) int64 {
	t.Helper()
	rev, err := f.store.Revision(self(t))
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// held checks that a live node holds a certificate, and that the records agree.
func (f *fixture) held(t *testing.T, name string, serial node.Serial) node.Node {
	t.Helper()
	n, err := f.store.Node(self(t), node.Certname(name))
	if err != nil || n.State != node.Provisioned || n.Newest() != serial {
		t.Fatalf("%s: %+v, %v, want it to hold %s", name, n, err, serial)
	}
	cert, err := f.store.Certificate(self(t), serial)
	if err != nil || cert.UID != n.UID || cert.Certname != n.Certname || cert.Revocation != "" {
		t.Fatalf("%s: its certificate is %+v, %v", name, cert, err)
	}
	return n
}

func TestImport(t *testing.T) {
	f := newFixture(t)
	if _, err := f.CreateGroup(self(t), node.Group{Name: "old"}, false); err != nil {
		t.Fatal(err)
	}
	serial := f.sign(t, "web1.test")
	spec := registry.ImportSpec{Groups: []string{"old"}, Labels: map[string]string{"from": "puppet"}}

	before := f.revision(t)
	spec.ValidateOnly = true
	if got := f.doImport(t, spec)["web1.test"]; got.Outcome != registry.WouldAdopt || got.Serial != serial || got.NotAfter.IsZero() {
		t.Errorf("a dry run: %+v", got)
	}
	if after := f.revision(t); after != before {
		t.Errorf("a dry run wrote: revision %d, before %d", after, before)
	}
	spec.ValidateOnly = false
	if got := f.doImport(t, spec)["web1.test"]; got.Outcome != registry.Adopted || got.Serial != serial {
		t.Errorf("imported: %+v", got)
	}
	n := f.held(t, "web1.test", serial)
	if !slices.Equal(n.Groups, spec.Groups) || n.Labels["from"] != "puppet" {
		t.Errorf("registered as %+v", n)
	}
	if cert, err := f.store.Certificate(self(t), serial); err != nil || cert.ImportedAt.IsZero() || !strings.HasPrefix(cert.PEM, "-----BEGIN CERT") {
		t.Errorf("certificate: %+v, %v", cert, err)
	}
	before = f.revision(t)
	if got := f.doImport(t, spec)["web1.test"]; got.Outcome != registry.Already || got.UID != n.UID {
		t.Errorf("imported again: %+v", got)
	}
	if after := f.revision(t); after != before {
		t.Error("a second import wrote")
	}
	if revoked := f.revoked(t); len(revoked) > 0 {
		t.Errorf("the import revoked %v", revoked)
	}

	f.run(t)
	if got := f.terminate(t, "web1.test", n.UID, 20*time.Second); len(got.Revocations) != 1 || got.Revocations[0].Receipt == nil || !f.revoked(t)[serial] {
		t.Errorf("terminated: %+v", got)
	}
	f.provision(t, "web1.test", "") // the name is free
}

// What stands beside a certificate is left as it is, and said.
func TestImportSkips(t *testing.T) {
	f := newFixture(t)
	reasons := map[string]string{}
	foreign := func(name node.Certname, reason string) node.Serial {
		reasons[string(name)] = reason
		return f.sign(t, name)
	}
	foreign("puppet.test", "puppet.server")

	f.provision(t, "pending.test", "")
	f.terminate(t, "pending.test", "", 0)
	foreign("pending.test", "revocation pending")

	f.provision(t, "ours.test", "")
	f.terminate(t, "ours.test", "", 0)
	reasons["ours.test"] = "its revocation is ordered"

	f.openIntent(t, "issuing.test")
	foreign("issuing.test", "is being issued")

	f.openIntent(t, "cut.test")
	f.terminate(t, "cut.test", "", 0)
	foreign("cut.test", "unfinished issue")

	f.options.Signed = signed{f.options.Signed, []string{"Bad_.test\x1b", "nul\xff.test"}, nil}
	reasons["Bad_.test?"], reasons["nul?.test"] = "breaks a rule", "breaks a rule"
	f.restart()

	got := f.doImport(t, registry.ImportSpec{})
	for name, reason := range reasons {
		if in := got[name]; in.Outcome != registry.Skipped || !strings.Contains(in.Reason, reason) {
			t.Errorf("%s: %+v, want %q", name, in, reason)
		}
	}
	if len(got) != len(reasons) {
		t.Errorf("%d outcomes, want %d: %v", len(got), len(reasons), got)
	}
	if revoked := f.revoked(t); len(revoked) > 0 {
		t.Errorf("revoked: %v", revoked)
	}
}

// openIntent leaves a node with an issue that came to no end.
func (f *fixture) openIntent(t *testing.T, name node.Certname) {
	t.Helper()
	broken := errors.Join(node.ErrUnavailable, errors.New("down"))
	f.authority.mu.Lock()
	f.authority.sign = func(context.Context, ca.Request) (*x509.Certificate, error) { return nil, broken }
	f.authority.find = func(context.Context, ca.Query) (ca.Found, error) { return ca.Found{}, broken }
	f.authority.mu.Unlock()
	defer f.authority.heal()
	if _, err := f.Provision(self(t), node.Node{Certname: name}, registry.Spec{}, "", false); !errors.Is(err, node.ErrUnavailable) {
		t.Fatal(err)
	}
}

// A certificate that espm revoked is not adopted out of what was seen before,
// also where espm never had it itself.
func TestImportOfWhatWasRevokedMeanwhile(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	serial := f.sign(t, "lost.test")
	before, err := f.options.Signed.Existing(self(t), []node.Certname{"lost.test"})
	if err != nil {
		t.Fatal(err)
	}
	// As settle does with a serial whose certificate the authority no longer has.
	c := store.NewChange()
	c.Unaudited()
	f.queue.Order(c, node.Revocation{Serial: serial, Certname: "lost.test"})
	if _, err := f.store.Commit(self(t), c); err != nil {
		t.Fatal(err)
	}
	f.queue.Kick()
	f.drain(t)
	f.options.Signed = signed{f.options.Signed, nil, func([]node.Certname) ([]ca.Existing, error) { return before, nil }}
	f.Registry = registry.New(f.options)
	if got := f.doImport(t, registry.ImportSpec{Certnames: []string{"lost.test"}})["lost.test"]; got.Reason != "espm has revoked it" {
		t.Errorf("got %+v", got)
	}
}

// A node that waits for its certificate gets it and stays what it was.
func TestImportForARegisteredNode(t *testing.T) {
	f := newFixture(t)
	if _, err := f.CreateGroup(self(t), node.Group{Name: "web"}, false); err != nil {
		t.Fatal(err)
	}
	was, err := f.Register(self(t), node.Node{Certname: "web1.test", Groups: []string{"web"}, Labels: map[string]string{"tier": "a"}}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	serial := f.sign(t, "web1.test")
	f.doImport(t, registry.ImportSpec{Certnames: []string{"web1.test"}, Labels: map[string]string{"from": "puppet"}})
	if n := f.held(t, "web1.test", serial); n.UID != was.UID || !slices.Equal(n.Groups, was.Groups) || len(n.Labels) != 1 {
		t.Errorf("got %+v, was %+v", n, was)
	}
	if _, err := f.Issue(self(t), "web1.test", "", registry.Spec{}, "", false); !errors.Is(err, node.ErrCertificateExists) {
		t.Errorf("presigned beside it: %v", err)
	}
}

func TestImportRefuses(t *testing.T) {
	f := newFixture(t)
	f.sign(t, "web1.test")
	for _, name := range []string{"a", "b"} {
		g := node.Group{Name: name, Classification: node.Classification{Environment: name}}
		if _, err := f.CreateGroup(self(t), g, false); err != nil {
			t.Fatal(err)
		}
	}
	before := f.revision(t)
	for want, s := range map[string]registry.ImportSpec{
		"certnames[1]: ":         {Certnames: []string{"web1.test", "../ca_key"}},
		"certnames: at most":     {Certnames: make([]string, 10_001)},
		"labels[":                {Labels: map[string]string{"no space": ""}},
		"groups":                 {Groups: []string{"none"}},
		`groups "a" and "b" set`: {Groups: []string{"a", "b"}},
	} {
		err := f.Import(self(t), s, func([]registry.Imported, int) error {
			t.Errorf("%s: something was done", want)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "affects") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if got := f.doImport(t, registry.ImportSpec{Certnames: []string{"none.test", "none.test"}}); len(got) != 1 || got["none.test"].Outcome != registry.NotFound {
		t.Errorf("got %+v", got)
	}
	if after := f.revision(t); after != before {
		t.Error("it wrote")
	}
}

// signed is the authority's, with further names or another answer.
type signed struct {
	registry.Signed
	more []string
	held func([]node.Certname) ([]ca.Existing, error)
}

func (s signed) SignedNames(ctx context.Context) ([]string, error) {
	names, err := s.Signed.SignedNames(ctx)
	return slices.Sorted(slices.Values(append(names, s.more...))), err
}

func (s signed) Existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error) {
	if s.held != nil {
		return s.held(names)
	}
	return s.Signed.Existing(ctx, names)
}
