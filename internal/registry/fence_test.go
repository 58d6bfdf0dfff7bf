package registry_test

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// byName makes the fixture's authority one that revokes by name: every
// certificate of a name that it has signed goes with a target of the name.
type byName struct {
	*fixture
	mu     sync.Mutex
	signed map[node.Certname][]node.Serial
	down   chan struct{} // while set, a revocation waits until it is closed
	asked  chan struct{} // has room for one: a revocation was asked for
}

func newByName(t *testing.T) *byName {
	t.Helper()
	b := &byName{fixture: newFixture(t), signed: map[node.Certname][]node.Serial{}, asked: make(chan struct{}, 1)}
	b.authority.byName = true
	b.authority.sign = b.signAny
	b.authority.revoke = b.revokeName
	return b
}

func (b *byName) signAny(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	cert, err := b.authority.Authority.Sign(ctx, r)
	if err == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.signed[r.Certname] = append(b.signed[r.Certname], node.SerialOf(cert.SerialNumber))
	}
	return cert, err
}

func (b *byName) revokeName(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	select {
	case b.asked <- struct{}{}:
	default:
	}
	b.mu.Lock()
	down := b.down
	b.mu.Unlock()
	if down != nil {
		select {
		case <-down:
		case <-ctx.Done():
			return nil, errors.Join(node.ErrUnavailable, ctx.Err())
		}
	}
	all := slices.Clone(targets)
	b.mu.Lock()
	for _, target := range targets {
		for _, serial := range b.signed[target.Certname] {
			all = append(all, ca.Target{Serial: serial, Certname: target.Certname})
		}
	}
	b.mu.Unlock()
	receipts, err := b.authority.Authority.Revoke(ctx, all)
	if err != nil {
		return nil, err
	}
	return receipts[:len(targets)], nil
}

// hold makes revocations wait until the returned function is called.
func (b *byName) hold() (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	down := make(chan struct{})
	b.down = down
	return sync.OnceFunc(func() {
		b.mu.Lock()
		b.down = nil
		b.mu.Unlock()
		close(down)
	})
}

// A name's next life waits until its last one is revoked, and no terminate of
// an earlier life, however late, reaches it.
func TestALateTerminateNeverKillsASuccessor(t *testing.T) {
	f := newByName(t)
	f.run(t)
	first := f.provision(t, "web1.test", "")
	release := f.hold()
	f.terminate(t, "web1.test", first.Node.UID, 0)
	<-f.asked // the revocation is on its way, and will be for long

	second := make(chan registry.Provisioned, 1)
	go func() {
		p, err := f.Provision(node.AsSelf(context.Background()), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false)
		if err != nil {
			t.Error(err)
		}
		second <- p
	}()
	ctx, cancel := context.WithTimeout(self(t), 1500*time.Millisecond)
	defer cancel()
	if _, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, registry.Spec{}, "", false); !errors.Is(err, node.ErrUnavailable) || ctx.Err() != nil {
		t.Errorf("a caller with little time got %v, after its deadline: %v", err, ctx.Err())
	}
	if busy := (*node.BusyError)(nil); !errors.As(f.provisionErr(t, "web1.test"), &busy) || busy.RetryAfter <= 0 {
		t.Error("no hint when to try again")
	}
	select {
	case p := <-second:
		t.Fatalf("signed %s while the revocation of its name is pending", p.Node.Newest())
	default:
	}
	release()
	p := <-second
	late := f.terminate(t, "web1.test", first.Node.UID, 10*time.Second)
	if late.Revocations[0].Receipt == nil || late.Node.UID != first.Node.UID {
		t.Errorf("the late terminate got %+v", late)
	}
	f.drain(t)
	if revoked := f.revoked(t); !revoked[first.Node.Newest()] || revoked[p.Node.Newest()] {
		t.Errorf("revoked %v; first %s, second %s", revoked, first.Node.Newest(), p.Node.Newest())
	}
}

// provisionErr provisions with little time, and returns the error.
func (f *fixture) provisionErr(t *testing.T, name node.Certname) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(self(t), 100*time.Millisecond)
	defer cancel()
	_, err := f.Provision(ctx, node.Node{Certname: name}, registry.Spec{}, "", false)
	return err
}

// An order that is pending beside a live certificate, as after a change of
// authority, is not handed over while that lives.
func TestTheQueueSparesASuccessor(t *testing.T) {
	f := newByName(t)
	f.authority.byName = false // an authority that revokes by serial signed both
	first := f.provision(t, "web1.test", "")
	f.terminate(t, "web1.test", first.Node.UID, 0)
	second := f.provision(t, "web1.test", "")
	other := f.provision(t, "web2.test", "")
	f.authority.byName = true
	f.terminate(t, "web2.test", other.Node.UID, 0)
	f.run(t)
	if got := f.terminate(t, "web2.test", other.Node.UID, 10*time.Second); got.Revocations[0].Receipt == nil {
		t.Fatalf("what is held back holds up others: %+v", got)
	}
	if revoked := f.revoked(t); revoked[second.Node.Newest()] || revoked[first.Node.Newest()] {
		t.Errorf("a revocation by name was handed over beside a live certificate: %v", revoked)
	}
	f.terminate(t, "web1.test", second.Node.UID, 10*time.Second)
	f.drain(t)
	if revoked := f.revoked(t); !revoked[second.Node.Newest()] || !revoked[first.Node.Newest()] {
		t.Errorf("left unrevoked: %v", revoked)
	}
}

// A retry whose first certificate's key is lost gets a new one, signed only
// when the first one is revoked.
func TestReissueRevokesFirst(t *testing.T) {
	f := newByName(t)
	f.run(t)
	first := f.provision(t, "web1.test", "r1")
	f.Registry = registry.New(f.options) // the answers are forgotten
	release := f.hold()
	ctx, cancel := context.WithTimeout(self(t), 1500*time.Millisecond)
	defer cancel()
	if _, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, registry.Spec{}, "r1", false); !errors.Is(err, node.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	if n, err := f.Get(self(t), "web1.test", ""); err != nil || n.Newest() != "" || n.State != node.Registered {
		t.Errorf("meanwhile the node is %+v, %v", n, err)
	}
	release()
	second := f.provision(t, "web1.test", "r1")
	if second.Node.UID != first.Node.UID || second.Node.Newest() == first.Node.Newest() {
		t.Errorf("got %+v after %+v", second.Node, first.Node)
	}
	f.drain(t)
	if revoked := f.revoked(t); !revoked[first.Node.Newest()] || revoked[second.Node.Newest()] {
		t.Errorf("revoked %v; first %s, second %s", revoked, first.Node.Newest(), second.Node.Newest())
	}
}

// An issue that could not be brought to its end may yet become a revocation:
// the name waits for it too.
func TestANameWaitsForOpenIntents(t *testing.T) {
	f := newByName(t)
	var lost node.Serial
	f.authority.sign = func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
		cert, err := f.signAny(ctx, r)
		if err == nil {
			lost = node.SerialOf(cert.SerialNumber)
		}
		return nil, errLost
	}
	f.authority.find = func(context.Context, ca.Query) (ca.Found, error) { return ca.Found{}, errLost }
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false); !errors.Is(err, errLost) {
		t.Fatalf("got %v", err)
	}
	f.terminate(t, "web1.test", "", 0)
	if err := f.provisionErr(t, "web1.test"); !errors.Is(err, node.ErrUnavailable) {
		t.Fatalf("got %v with an intent open", err)
	}
	f.authority.mu.Lock()
	f.authority.sign, f.authority.find = f.signAny, nil
	f.authority.mu.Unlock()
	f.run(t)
	p := f.provision(t, "web1.test", "")
	f.drain(t)
	if revoked := f.revoked(t); !revoked[lost] || revoked[p.Node.Newest()] {
		t.Errorf("revoked %v; lost %s, live %s", revoked, lost, p.Node.Newest())
	}
}
