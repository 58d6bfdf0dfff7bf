package registry_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

func (f *fixture) terminate(t *testing.T, name node.Certname, uid node.UID, wait time.Duration) registry.Terminated {
	t.Helper()
	got, err := f.Terminate(self(t), registry.TerminateRequest{Certname: name, UID: uid}, wait, false)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTerminateGivesTheReceipt(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	p := f.provision(t, "web1.test", "")
	got := f.terminate(t, "web1.test", "", 10*time.Second)
	if len(got.Revocations) != 1 || got.Revocations[0].Receipt == nil || got.Revocations[0].Receipt.CRLNumber != "1" {
		t.Fatalf("got %+v", got.Revocations)
	}
	if !f.revoked(t)[p.Node.Newest()] {
		t.Error("not on the CRL")
	}
	if got.Node.State != node.Terminated || got.Node.UID != p.Node.UID {
		t.Errorf("got %+v", got.Node)
	}
	if cert, err := f.store.Certificate(self(t), p.Node.Newest()); err != nil || cert.Receipt == nil {
		t.Errorf("the certificate's record: %+v, %v", cert, err)
	}
}

func TestTerminateIsFenced(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	first := f.provision(t, "web1.test", "")
	f.terminate(t, "web1.test", first.Node.UID, 10*time.Second)
	second := f.provision(t, "web1.test", "")

	late := f.terminate(t, "web1.test", first.Node.UID, 0)
	if late.Node.UID != first.Node.UID || late.Revocations[0].Serial != first.Node.Newest() {
		t.Errorf("a late terminate got %+v", late)
	}
	if n, err := f.Get(self(t), "web1.test", ""); err != nil || n.UID != second.Node.UID || f.revoked(t)[n.Newest()] {
		t.Errorf("a late terminate touched the successor: %+v, %v", n, err)
	}
	if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web1.test", UID: "never-was"}, 0, false); !errors.Is(err, node.ErrUIDMismatch) {
		t.Errorf("an unknown uid: got %v", err)
	}
	f.terminate(t, "web1.test", second.Node.UID, 0)
	if again := f.terminate(t, "web1.test", "", 0); again.Node.UID != second.Node.UID {
		t.Errorf("asked again without a uid: got %s, want the last, %s", again.Node.UID, second.Node.UID)
	}
	if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web2.test"}, 0, false); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("an unknown node: got %v", err)
	}
}

// The reason goes to the CA with the first terminate, and stands.
func TestTerminateReason(t *testing.T) {
	f := newFixture(t)
	end := func(name node.Certname, uid node.UID, reason node.Reason) node.Revocation {
		t.Helper()
		got, err := f.Terminate(self(t), registry.TerminateRequest{Certname: name, UID: uid, Reason: reason}, 0, false)
		if err != nil || len(got.Revocations) != 1 {
			t.Fatalf("got %+v, %v", got, err)
		}
		return got.Revocations[0]
	}
	p := f.provision(t, "web1.test", "")
	f.provision(t, "web2.test", "")
	first := end("web1.test", "", node.CessationOfOperation)
	if first.Reason != node.CessationOfOperation {
		t.Errorf("ordered for %q", first.Reason)
	}
	for _, reason := range []node.Reason{"", node.Superseded} {
		if again := end("web1.test", p.Node.UID, reason); again.ID != first.ID || again.Reason != first.Reason {
			t.Errorf("asked again for %q: %+v", reason, again)
		}
	}
	if again := end("web2.test", "", ""); again.Reason != "" {
		t.Errorf("ordered for %q, want none", again.Reason)
	}
	told := map[node.Certname]node.Reason{}
	f.authority.revoke = func(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
		for _, target := range targets {
			told[target.Certname] = target.Reason
		}
		return f.authority.Authority.Revoke(ctx, targets)
	}
	ctx, cancel := context.WithCancel(self(t))
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); f.queue.Run(ctx) }()
	f.drain(t)
	cancel()
	<-ended
	if told["web1.test"] != node.CessationOfOperation || told["web2.test"] != "" || len(told) != 2 {
		t.Errorf("the CA was told %v", told)
	}
	f.terminate(t, "web1.test", p.Node.UID, 0)
	if end("web1.test", "", node.Superseded).Reason != node.CessationOfOperation {
		t.Error("a reason was changed after the receipt")
	}
}

func TestProtectedNamesAreNotTerminated(t *testing.T) {
	f := newFixture(t)
	f.provision(t, "puppet.test", "")
	if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "puppet.test"}, 0, false); !errors.Is(err, node.ErrProtected) {
		t.Errorf("got %v", err)
	}
	if n, err := f.Get(self(t), "puppet.test", ""); err != nil || n.State != node.Provisioned {
		t.Errorf("got %+v, %v", n, err)
	}
}

func TestRevocationWaitsForTheAuthority(t *testing.T) {
	f := newFixture(t)
	p := f.provision(t, "web1.test", "")
	tried := make(chan struct{}, 100)
	f.authority.revoke = func(context.Context, []ca.Target) ([]node.Receipt, error) {
		tried <- struct{}{}
		return nil, errLost
	}
	f.run(t)
	if got := f.terminate(t, "web1.test", "", 0); got.Revocations[0].Receipt != nil {
		t.Fatal("a receipt without a revocation")
	}
	<-tried
	if _, err := f.Get(self(t), "web1.test", ""); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("the node waits for the authority to leave: %v", err)
	}
	f.authority.heal()
	got := f.terminate(t, "web1.test", p.Node.UID, 20*time.Second)
	if got.Revocations[0].Receipt == nil || !f.revoked(t)[p.Node.Newest()] {
		t.Errorf("got %+v", got.Revocations)
	}
}

func TestOneBadNameDoesNotBlockTheOthers(t *testing.T) {
	f := newFixture(t)
	good, bad := f.provision(t, "good.test", ""), f.provision(t, "bad.test", "")
	f.authority.revoke = func(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
		for _, target := range targets {
			if target.Certname == "bad.test" {
				return nil, errors.New("bad.test can't be revoked")
			}
		}
		return f.authority.Authority.Revoke(ctx, targets)
	}
	f.terminate(t, "bad.test", "", 0)
	f.run(t)
	if got := f.terminate(t, "good.test", "", 20*time.Second); got.Revocations[0].Receipt == nil {
		t.Fatalf("got %+v", got)
	}
	if revoked := f.revoked(t); !revoked[good.Node.Newest()] || revoked[bad.Node.Newest()] {
		t.Errorf("revoked %v", revoked)
	}
}

func TestOldRegistrationsAreForgotten(t *testing.T) {
	f := newFixture(t)
	done := f.provision(t, "done.test", "r1")
	owed := f.provision(t, "owed.test", "r2")
	f.authority.revoke = func(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
		for _, target := range targets {
			if target.Certname == "owed.test" {
				return nil, errors.New("not yet")
			}
		}
		return f.authority.Authority.Revoke(ctx, targets)
	}
	f.terminate(t, "done.test", "", 0)
	f.terminate(t, "owed.test", "", 0)
	f.clock.advance(31 * 24 * time.Hour)
	f.run(t)
	f.terminate(t, "done.test", done.Node.UID, 20*time.Second)
	if err := f.Sweep(self(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "done.test", UID: done.Node.UID}, 0, false); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("done.test is remembered: %v", err)
	}
	if _, ok, err := f.store.Request(self(t), "r1"); ok || err != nil {
		t.Errorf("its request id is remembered: %v", err)
	}
	if got := f.terminate(t, "owed.test", owed.Node.UID, 0); len(got.Revocations) != 1 {
		t.Errorf("owed.test was forgotten before it was revoked: %+v", got)
	}
}

// The receipts that come with an error stand: nobody is asked twice.
func TestReceiptsBesideAnError(t *testing.T) {
	f := newFixture(t)
	good, bad := f.provision(t, "good.test", ""), f.provision(t, "bad.test", "")
	var mu sync.Mutex
	asked := map[node.Certname]int{}
	f.authority.revoke = func(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
		receipts := make([]node.Receipt, len(targets))
		refused := &ca.RefusedError{Targets: make([]error, len(targets))}
		for i, target := range targets {
			mu.Lock()
			asked[target.Certname]++
			mu.Unlock()
			if target.Certname == "bad.test" {
				refused.Targets[i] = errors.New("bad.test can't be revoked")
				continue
			}
			one, err := f.authority.Authority.Revoke(ctx, []ca.Target{target})
			if err != nil {
				return nil, err
			}
			receipts[i] = one[0]
		}
		if errors.Join(refused.Targets...) == nil {
			return receipts, nil
		}
		return receipts, refused
	}
	f.terminate(t, "bad.test", "", 0)
	f.terminate(t, "good.test", "", 0)
	f.run(t)
	got := f.terminate(t, "good.test", good.Node.UID, 20*time.Second)
	late := f.terminate(t, "bad.test", bad.Node.UID, 0)
	mu.Lock()
	defer mu.Unlock()
	if got.Revocations[0].Receipt == nil || late.Revocations[0].Receipt != nil || asked["good.test"] != 1 {
		t.Errorf("got %+v and %+v, asked %v", got.Revocations, late.Revocations, asked)
	}
}
