package registry_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// revokeAndDrop leaves a node's certificate valid, after its revocation was ordered.
func (f *fixture) revokeAndDrop(t *testing.T, name node.Certname, meanwhile func()) {
	t.Helper()
	revs, err := f.Revoke(self(t), registry.RevokeRequest{Certname: name}, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	rev := revs[0]
	meanwhile()
	if _, err := f.DropRevocation(self(t), rev.ID, "it was found again"); err != nil {
		t.Fatal(err)
	}
}

// A dropped revocation leaves everything as it was, and a terminate finds the certificate.
func TestTerminateAfterADrop(t *testing.T) {
	f := newFixture(t)
	p := f.provision(t, "web1.test", "")
	f.revokeAndDrop(t, "web1.test", func() {})
	f.held(t, "web1.test", p.Node.Newest())
	if got := f.doImport(t, registry.ImportSpec{})["web1.test"]; got.Outcome != registry.Already {
		t.Errorf("imported: %+v", got)
	}
	f.run(t)
	if got := f.terminate(t, "web1.test", "", 20*time.Second); len(got.Revocations) != 2 || !f.revoked(t)[p.Node.Newest()] {
		t.Errorf("terminated: %+v", got)
	}
}

// A certificate that its node got no more, as it has another, is revoked with the node.
func TestTerminateRevokesAllThatIsValid(t *testing.T) {
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
	f.held(t, "web1.test", second.Newest())
	before := len(f.lines(t))
	var mu sync.Mutex
	read := map[string]int{}
	f.engine.onGet(func(ctx context.Context, key string) (store.Record, error) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(key, "cert/") {
			read[key]++
		}
		return f.engine.Engine.Get(ctx, key)
	})
	f.terminate(t, "web1.test", "", 0)
	if once := map[string]int{"cert/" + string(first.Newest()): 1, "cert/" + string(second.Newest()): 1}; !maps.Equal(read, once) {
		t.Errorf("read %v, want %v", read, once)
	}
	lines := f.lines(t)[before:]
	if len(lines) != 2 || lines[0].Action != node.ActionTerminate || lines[0].Serial != second.Newest() || lines[1].Action != node.ActionOrder || lines[1].Serial != first.Newest() {
		t.Errorf("audit lines: %+v", lines)
	}
	f.run(t)
	f.terminate(t, "web1.test", second.UID, 20*time.Second)
	if revoked := f.revoked(t); !revoked[first.Newest()] || !revoked[second.Newest()] {
		t.Errorf("revoked %v, want %s and %s", revoked, first.Newest(), second.Newest())
	}
}

// A registration whose certificate has no record is not terminated: it could not be revoked.
func TestTerminateWithoutTheCertificatesRecord(t *testing.T) {
	f := newFixture(t)
	p := f.provision(t, "web1.test", "")
	f.engine.onGet(func(ctx context.Context, key string) (store.Record, error) {
		if strings.HasPrefix(key, "cert/") {
			return store.Record{}, store.ErrNoKey
		}
		return f.engine.Engine.Get(ctx, key)
	})
	_, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web1.test"}, 0, false)
	if !errors.Is(err, node.ErrCertificateNotFound) || !strings.Contains(err.Error(), string(p.Node.Newest())) {
		t.Errorf("got %v", err)
	}
	if n, err := f.Get(self(t), "web1.test", ""); err != nil || n.Newest() != p.Node.Newest() {
		t.Errorf("got %+v, %v", n, err)
	}
}

// A certificate that is valid by an admin's word is not another life's, is not
// adopted again, and can be revoked until it expires.
func TestDropAfterTerminate(t *testing.T) {
	f := newFixture(t)
	p := f.provision(t, "web1.test", "")
	f.revokeAndDrop(t, "web1.test", func() {
		f.terminate(t, "web1.test", "", 0)
		f.enroll(t, "web1.test")
	})
	if n, err := f.Get(self(t), "web1.test", ""); err != nil || n.Newest() != "" {
		t.Errorf("the next registration: %+v, %v", n, err)
	}
	if got := f.doImport(t, registry.ImportSpec{})["web1.test"]; got.Outcome != registry.Skipped || !strings.Contains(got.Reason, "was dropped") {
		t.Errorf("imported: %+v", got)
	}
	f.clock.advance(31 * 24 * time.Hour)
	if err := f.Sweep(self(t)); err != nil {
		t.Fatal(err)
	}
	cert, err := f.store.Certificate(self(t), p.Node.Newest())
	if err != nil {
		t.Fatalf("a valid certificate was forgotten: %v", err)
	}
	f.clock.advance(cert.NotAfter.Sub(f.clock.Now()) + time.Second)
	if err := f.Sweep(self(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Certificate(self(t), p.Node.Newest()); !errors.Is(err, node.ErrCertificateNotFound) {
		t.Errorf("it has expired, and is remembered: %v", err)
	}
}

// An order that the CRL has, though not all its copies, is not given up any more.
func TestDropOfWhatIsListed(t *testing.T) {
	f := newFixture(t)
	f.authority.Authority.(*directory.Authority).Close()
	published := filepath.Join(t.TempDir(), "missing", "crl.pem")
	a, err := directory.Open(f.caDir, directory.Options{Publish: []string{published}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	tried := make(chan struct{}, 100)
	f.authority.Authority = a
	f.authority.revoke = func(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
		receipts, err := a.Revoke(ctx, targets)
		tried <- struct{}{}
		return receipts, err
	}
	p := f.provision(t, "web1.test", "")
	revs, err := f.Revoke(self(t), registry.RevokeRequest{Certname: "web1.test"}, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	rev := revs[0]
	f.run(t)
	<-tried
	if _, err := f.DropRevocation(self(t), rev.ID, "it was found again"); !errors.Is(err, node.ErrRevocationClosed) || !strings.Contains(err.Error(), "on CRL 1 already") {
		t.Errorf("got %v", err)
	}
	if cert, err := f.store.Certificate(self(t), p.Node.Newest()); err != nil || cert.Revocation != rev.ID {
		t.Errorf("its record: %+v, %v", cert, err)
	}
	if err := os.Mkdir(filepath.Dir(published), 0o755); err != nil {
		t.Fatal(err)
	}
	f.drain(t)
	if now, err := f.store.Revocation(self(t), rev.ID); err != nil || now.Receipt == nil {
		t.Errorf("got %+v, %v", now, err)
	}
}

// Nobody keeps alive the certificate of its own certname.
func TestNobodyDropsItsOwnRevocation(t *testing.T) {
	f := newFixture(t)
	f.provision(t, "boss.test", "")
	revs, err := f.Revoke(admin(t), registry.RevokeRequest{Certname: "boss.test"}, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	boss := node.WithCaller(t.Context(), node.Caller{Name: "certname:boss.test", Role: node.Admin})
	_, err = f.DropRevocation(boss, revs[0].ID, "I stay")
	wantRefused(t, "its own", err, "id")
	if _, err := f.DropRevocation(admin(t), revs[0].ID, "wrong node"); err != nil {
		t.Error(err)
	}
}
