package rpc

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/clock"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/testbed"
)

// rig is a whole espm behind a socket: a real store and a real CA directory,
// with a place to put faults between it and the CA.
type rig struct {
	dir       string
	store     *store.Store
	authority *faulty
	registry  *registry.Registry
	sightings *registry.Sightings
	audit     *audit.Log // not running: what is refused leaves the store as it was
	grpc      *Server
	address   string // of the network listener, where newNetwork made one
	gate      *auth.Gate
	stop      context.CancelFunc // as the daemon does before it stops the server
	working   *sync.WaitGroup    // what works in the background until then
	reads     *atomic.Int64      // of the store's engine
	log       *bytes.Buffer      // to be read once the server has stopped

	conn        *grpc.ClientConn
	nodes       espmv1.NodeServiceClient
	certs       espmv1.CertificateServiceClient
	revocations espmv1.RevocationServiceClient
	groups      espmv1.GroupServiceClient
	classifier  espmv1.ClassifierServiceClient
	auditing    espmv1.AuditServiceClient
	closeStore  func() error
	clock       *clock.Guard
	hostAhead   *atomic.Int64 // how far the clock of the guard is ahead, in nanoseconds
	ahead       *atomic.Int64 // how far the clock that tokens live by is ahead, in nanoseconds
}

// counting is an engine that counts the reads.
type counting struct {
	store.Engine
	reads *atomic.Int64
}

func (c counting) Get(ctx context.Context, key string) (store.Record, error) {
	c.reads.Add(1)
	return c.Engine.Get(ctx, key)
}

func (c counting) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, int64, error) {
	c.reads.Add(1)
	return c.Engine.List(ctx, prefix, after, limit)
}

// faulty is an authority whose calls a test can fail, hold up or blow up.
type faulty struct {
	*directory.Authority
	onSign  atomic.Pointer[func(context.Context) error]
	onTrust atomic.Pointer[func() error]
	onHeld  atomic.Pointer[func()]
	down    atomic.Bool // nothing is revoked
}

func (f *faulty) Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	if f.down.Load() {
		return nil, node.ErrUnavailable
	}
	return f.Authority.Revoke(ctx, targets)
}

func (f *faulty) Existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error) {
	if hook := f.onHeld.Load(); hook != nil {
		(*hook)()
	}
	return f.Authority.Existing(ctx, names)
}

func (f *faulty) Sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	if hook := f.onSign.Load(); hook != nil {
		if err := (*hook)(ctx); err != nil {
			return nil, err
		}
	}
	return f.Authority.Sign(ctx, r)
}

func (f *faulty) Trust(ctx context.Context) (ca.Trust, error) {
	if hook := f.onTrust.Load(); hook != nil {
		if err := (*hook)(); err != nil {
			return ca.Trust{}, err
		}
	}
	return f.Authority.Trust(ctx)
}

// inline makes keys at once: EC keys cost nothing.
type inline struct{}

func (inline) NewKey(_ context.Context, alg ca.KeyAlgorithm) (crypto.Signer, error) {
	return ca.GenerateKey(alg)
}

func newRig(t *testing.T) *rig { return newRigWith(t, bolt.Options{}) }

func newRigWith(t *testing.T, o bolt.Options) *rig {
	t.Helper()
	r := prepareRig(t, o)
	r.serve(t, DefaultLimits, nil)
	return r
}

// prepareRig makes all but the server.
func prepareRig(t *testing.T, o bolt.Options) *rig {
	t.Helper()
	dir := testbed.Dir(t)
	r := &rig{dir: dir, log: &bytes.Buffer{}, ahead: new(atomic.Int64), hostAhead: new(atomic.Int64), working: new(sync.WaitGroup), reads: new(atomic.Int64)}
	engine, err := bolt.Open(filepath.Join(dir, "espm.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	r.closeStore = sync.OnceValue(engine.Close)
	t.Cleanup(func() { _ = r.closeStore() })
	if r.store, err = store.New(t.Context(), counting{engine, r.reads}); err != nil {
		t.Fatal(err)
	}
	if err := directory.Create(filepath.Join(dir, "ca"), directory.CreateOptions{Host: "puppet.test", Key: ca.ECP256}); err != nil {
		t.Fatal(err)
	}
	authority, err := directory.Open(filepath.Join(dir, "ca"), directory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = authority.Close() })
	r.authority = &faulty{Authority: authority}
	return r
}

// serve serves on a local socket, and with a network configuration on the network, too.
func (r *rig) serve(t *testing.T, limits Limits, network func(*auth.GateOptions)) {
	t.Helper()
	log := logrus.New()
	log.SetOutput(r.log)
	log.SetLevel(logrus.DebugLevel)
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	queue := revoke.New(r.store, r.authority, time.Now, silent)
	r.sightings = registry.NewSightings(r.store, registry.SeenInStore(r.store), time.Now, silent)
	reg := registry.New(registry.Options{
		Store: r.store, Authority: r.authority, Signed: r.authority, Keys: inline{}, Revocations: queue,
		Puppet: bootstrap.Server{Name: "puppet.test", Port: 8140}, Algorithm: ca.ECP256,
		Protected: []string{"puppet.test"}, Now: time.Now, Log: silent, Sightings: r.sightings,
	})
	r.registry = reg
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.working.Go(func() { queue.Run(ctx) })
	r.working.Go(func() { reg.Run(ctx) })
	r.audit = audit.New(r.store, audit.Options{Now: time.Now, Log: silent})
	access := r.access(t, log)
	if network != nil {
		network(&access)
		go access.Trust.Run(ctx)
	}
	r.gate = auth.NewGate(access)
	var err error
	if r.clock, err = clock.New(ctx, r.store, func() time.Time { return time.Now().Add(time.Duration(r.hostAhead.Load())) }, silent); err != nil {
		t.Fatal(err)
	}
	r.grpc = NewServer(ctx, Options{
		Registry: reg, Gate: r.gate, Tokens: access.Tokens,
		Audit: r.audit, Backups: empty{}, Clock: r.clock, Limits: limits, Now: time.Now, Log: log,
	})
	l, err := net.Listen("unix", filepath.Join(r.dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	go r.grpc.Serve(Listen(l, limits, log))
	if network != nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r.address = l.Addr().String()
		go r.grpc.Serve(Listen(l, limits, log))
	}
	if r.conn, err = grpc.NewClient("unix://"+filepath.Join(r.dir, "s"), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.conn.Close(); r.grpc.Stop(); stop(); r.working.Wait() })
	r.nodes = espmv1.NewNodeServiceClient(r.conn)
	r.certs = espmv1.NewCertificateServiceClient(r.conn)
	r.revocations = espmv1.NewRevocationServiceClient(r.conn)
	r.groups = espmv1.NewGroupServiceClient(r.conn)
	r.classifier = espmv1.NewClassifierServiceClient(r.conn)
	r.auditing = espmv1.NewAuditServiceClient(r.conn)
}

// access lets this process in, as the admin that it is.
func (r *rig) access(t *testing.T, log logrus.FieldLogger) auth.GateOptions {
	t.Helper()
	local, err := auth.NewLocal("")
	if err != nil {
		t.Fatal(err)
	}
	ahead := func() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }
	tokens, err := auth.NewTokens(t.Context(), r.store, r.store, ahead, log)
	if err != nil {
		t.Fatal(err)
	}
	return auth.GateOptions{Local: local, Tokens: tokens, Limits: auth.NewLimits(time.Now), Refusals: r.audit, Now: time.Now, Log: log}
}

// fail makes the authority's Sign return an error from now on; nil mends it.
func (r *rig) fail(sign func(context.Context) error) {
	if sign == nil {
		r.authority.onSign.Store(nil)
		return
	}
	r.authority.onSign.Store(&sign)
}

func (r *rig) register(t *testing.T, n *espmv1.Node) *espmv1.Node {
	t.Helper()
	resp, err := r.nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: n})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetNode()
}

func (r *rig) provision(t *testing.T, name, requestID string) *espmv1.ProvisionNodeResponse {
	t.Helper()
	resp, err := r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: name}, RequestId: requestID})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (r *rig) terminate(t *testing.T, name string) *espmv1.TerminateNodeResponse {
	t.Helper()
	resp, err := r.nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: name})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (r *rig) createGroup(t *testing.T, g *espmv1.Group) *espmv1.Group {
	t.Helper()
	resp, err := r.groups.CreateGroup(t.Context(), &espmv1.CreateGroupRequest{Group: g})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetGroup()
}

// held is what a refused call must leave as it was: the store's revision and
// the files of the CA.
func (r *rig) held(t *testing.T) string {
	t.Helper()
	rev, err := r.store.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("revision " + time.Duration(rev).String() + "\n")
	signed, err := filepath.Glob(filepath.Join(r.dir, "ca", "signed", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(signed, filepath.Join(r.dir, "ca", "inventory.txt"), filepath.Join(r.dir, "ca", "ca_crl.pem")) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(path + "\n" + string(data))
	}
	return b.String()
}

// expect checks an error's code and reason and returns its field violations.
func expect(t *testing.T, err error, code codes.Code, reason string) []*errdetails.BadRequest_FieldViolation {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != code {
		t.Errorf("got %v, want %s", err, code)
		return nil
	}
	var info *errdetails.ErrorInfo
	var bad *errdetails.BadRequest
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.BadRequest:
			bad = d
		}
	}
	if info.GetReason() != reason || info.GetDomain() != Domain {
		t.Errorf("%v: got %v, want reason %s of domain %s", err, info, reason, Domain)
	}
	if reason != "PERMISSION_DENIED" && (reason == "INVALID") != (len(bad.GetFieldViolations()) > 0) {
		t.Errorf("%v: got the field violations %v", err, bad.GetFieldViolations())
	}
	return bad.GetFieldViolations()
}

// newCSR returns a CSR of a key made for it.
func newCSR(t *testing.T, name string, dns ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: dns}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func parseCertificate(t *testing.T, encoded []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(encoded)
	if block == nil {
		t.Fatalf("not PEM: %q", encoded)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issued counts the lines that the CA's inventory has for a name.
func (r *rig) issued(t *testing.T, name string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.dir, "ca", "inventory.txt"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	return len(slices.DeleteFunc(lines, func(l string) bool { return !strings.HasSuffix(l, "/CN="+name) }))
}

var errBroken = errors.New("the authority broke")

// empty is a backup with nothing in it.
type empty struct{}

func (empty) Snapshot(context.Context, io.Writer, bool) error { return nil }
