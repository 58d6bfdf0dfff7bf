package registry_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/enginetest"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

// fixture is a registry over a real store and a real CA in a temporary
// folder. Nothing runs in the background unless a test starts it.
type fixture struct {
	*registry.Registry
	store     *store.Store
	engine    *faultyEngine
	authority *authority
	queue     *revoke.Queue
	keys      *keys
	clock     *clock
	options   registry.Options
	caDir     string
	disk      sync.Mutex // the disk of the store hangs while it is locked
}

// self is the context of work that espm does by itself, which nothing confines.
func self(t *testing.T) context.Context { return node.AsSelf(t.Context()) }

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{keys: &keys{}, clock: &clock{now: time.Now()}, caDir: filepath.Join(dir, "ca")}
	f.engine = &faultyEngine{Engine: enginetest.Open(t, func(int, time.Duration, error) {
		f.disk.Lock()
		defer f.disk.Unlock()
	})}
	var err error
	if f.store, err = store.New(self(t), f.engine); err != nil {
		t.Fatal(err)
	}
	if err := directory.Create(f.caDir, directory.CreateOptions{Host: "puppet.test", Key: ca.ECP256}); err != nil {
		t.Fatal(err)
	}
	real, err := directory.Open(f.caDir, directory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { real.Close() })
	f.authority = &authority{Authority: real}
	log := logrus.New()
	log.SetOutput(io.Discard)
	wrapped := struct{ ca.Authority }{f.authority} // which must not hide what the authority is
	f.queue = revoke.New(f.store, wrapped, f.clock.Now, log)
	f.options = registry.Options{
		Store: f.store, Authority: wrapped, Signed: real, Keys: f.keys, Revocations: f.queue,
		Puppet: bootstrap.Server{Name: "puppet.test", Port: 8140}, Algorithm: ca.ECP256,
		Protected: []string{"puppet.test"}, Now: f.clock.Now, Log: log,
	}
	f.Registry = registry.New(f.options)
	return f
}

// restart returns a registry over the same records that remembers nothing else.
func (f *fixture) restart() { f.Registry = registry.New(f.options) }

// run starts the registry's and the queue's background work.
func (f *fixture) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.Registry.Run(ctx) })
	wg.Go(func() { f.queue.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// clock is set by tests.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// faultyEngine is the real one; each hook, where set, stands in for the call.
type faultyEngine struct {
	store.Engine
	commit atomic.Pointer[func(context.Context, store.Batch) (int64, error)]
	get    atomic.Pointer[func(context.Context, string) (store.Record, error)]
}

func (e *faultyEngine) Get(ctx context.Context, key string) (store.Record, error) {
	if hook := e.get.Load(); hook != nil {
		return (*hook)(ctx, key)
	}
	return e.Engine.Get(ctx, key)
}

func (e *faultyEngine) Commit(ctx context.Context, b store.Batch) (int64, error) {
	if hook := e.commit.Load(); hook != nil {
		return (*hook)(ctx, b)
	}
	return e.Engine.Commit(ctx, b)
}

// onGet sets the hook of Get.
func (e *faultyEngine) onGet(hook func(context.Context, string) (store.Record, error)) {
	e.get.Store(&hook)
}

// onCommit sets the hook; nil takes it away.
func (e *faultyEngine) onCommit(hook func(context.Context, store.Batch) (int64, error)) {
	if hook == nil {
		e.commit.Store(nil)
		return
	}
	e.commit.Store(&hook)
}

// keys counts the keys it makes.
type keys struct{ made atomic.Int64 }

func (k *keys) NewKey(_ context.Context, alg ca.KeyAlgorithm) (crypto.Signer, error) {
	k.made.Add(1)
	return ca.GenerateKey(alg)
}

// authority is the real one, with faults: each hook, where set, stands in
// for the call, and may call the real one.
type authority struct {
	ca.Authority
	byName bool // revokes whatever the name has, as Puppet Server does
	mu     sync.Mutex
	sign   func(context.Context, ca.Request) (*x509.Certificate, error)
	find   func(context.Context, ca.Query) (ca.Found, error)
	revoke func(context.Context, []ca.Target) ([]node.Receipt, error)
}

func (a *authority) Sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	if hook := pick(a, &a.sign); hook != nil {
		return hook(ctx, r)
	}
	return a.Authority.Sign(ctx, r)
}

func (a *authority) Find(ctx context.Context, q ca.Query) (ca.Found, error) {
	if hook := pick(a, &a.find); hook != nil {
		return hook(ctx, q)
	}
	return a.Authority.Find(ctx, q)
}

func (a *authority) Traits() ca.Traits {
	traits := a.Authority.Traits()
	traits.RevokesByName = a.byName
	return traits
}

func (a *authority) Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	if hook := pick(a, &a.revoke); hook != nil {
		return hook(ctx, targets)
	}
	return a.Authority.Revoke(ctx, targets)
}

func pick[T any](a *authority, hook *T) T {
	a.mu.Lock()
	defer a.mu.Unlock()
	return *hook
}

// failRevoke sets the hook of Revoke while the queue runs.
func (a *authority) failRevoke(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoke = func(context.Context, []ca.Target) ([]node.Receipt, error) { return nil, err }
}

// heal takes all faults away.
func (a *authority) heal() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sign, a.find, a.revoke = nil, nil, nil
}

// revoked returns the serials on the CRL.
func (f *fixture) revoked(t *testing.T) map[node.Serial]bool {
	t.Helper()
	trust, err := f.authority.Trust(self(t))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(trust.CRLsPEM)
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	out := map[node.Serial]bool{}
	for _, e := range crl.RevokedCertificateEntries {
		out[node.SerialOf(e.SerialNumber)] = true
	}
	return out
}

func newCSR(t *testing.T, name string) []byte { return newCSRWith(t, name, nil) }

// newCSRWith asks for extensions itself.
func newCSRWith(t *testing.T, name string, extensions map[string]string) []byte {
	t.Helper()
	exts, err := ca.ParseExtensions(extensions)
	if err != nil {
		t.Fatal(err)
	}
	asked := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
	for _, e := range exts {
		value, err := asn1.MarshalWithParams(e.Value, "utf8")
		if err != nil {
			t.Fatal(err)
		}
		asked.ExtraExtensions = append(asked.ExtraExtensions, pkix.Extension{Id: e.ID, Value: value})
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, asked, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// provision provisions a bare node and wants it to succeed.
func (f *fixture) provision(t *testing.T, name node.Certname, requestID string) registry.Provisioned {
	t.Helper()
	p, err := f.Provision(self(t), node.Node{Certname: name}, registry.Spec{}, requestID, false)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// drain waits until nothing is pending and no intent is open; what does so must run.
func (f *fixture) drain(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(self(t), 20*time.Second)
	defer cancel()
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		pending, err := f.store.Pending(ctx, "", 1)
		if err != nil {
			t.Fatal(err)
		}
		open := 0
		for range f.store.Intents(ctx) {
			open++
		}
		if len(pending) == 0 && open == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d intents and %d revocations are left", open, len(pending))
		}
	}
}
