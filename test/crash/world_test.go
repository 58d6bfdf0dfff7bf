// Package crash kills espm, by SIGKILL, and looks at what it finds again.
//
// The durable steps of a provision are: the commit of node and intent; the
// authority's inventory line and its certificate file; the commit of the
// certificate. Those of a terminate: the commit that takes the node out and
// orders the revocation; the CRL; its published copies; the removal of the
// certificate file; the commit of the receipt. Those of a round of care are
// the CRL, the note of its number, and its copies. After each of them the audit
// log is sealed, one more commit. steps_test kills before and
// after each of them, random_test kills a daemon under load at any moment.
package crash

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// world is an espm without its sockets, over a folder.
type world struct {
	engine    store.Engine
	store     *store.Store
	authority *directory.Authority
	options   registry.Options
	queue     *revoke.Queue
	registry  *registry.Registry
	audit     *audit.Log // not running: sealed where a test says so
}

// open builds one; wrap and disk may come between it and its durable steps.
func open(dir string, wrap func(store.Engine) store.Engine, disk durable.Disk) (*world, error) {
	engine, err := bolt.Open(filepath.Join(dir, "espm.db"), bolt.Options{})
	if err != nil {
		return nil, err
	}
	w := &world{engine: engine}
	if w.store, err = store.New(context.Background(), wrap(engine)); err != nil {
		return nil, err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	w.authority, err = directory.Open(filepath.Join(dir, "ca"), directory.Options{
		Publish: []string{filepath.Join(dir, "crl.pem")}, Disk: disk, Log: log,
		CRLValidity: ca.MaxTTL, // so long that less than a third is left of what a new CA's CRL has
	})
	if err != nil {
		return nil, err
	}
	w.queue = revoke.New(w.store, w.authority, time.Now, log)
	w.options = registry.Options{
		Store: w.store, Authority: w.authority, Signed: w.authority, Keys: inline{}, Revocations: w.queue,
		Puppet: bootstrap.Server{Name: "puppet", Port: 8140}, Algorithm: ca.ECP256,
		Now: time.Now, Log: log,
	}
	w.registry = registry.New(w.options)
	w.audit = audit.New(w.store, audit.Options{Now: time.Now, Log: log})
	return w, nil
}

// forgetful returns a registry over the same records that remembers no answer, as after a restart.
func (w *world) forgetful() *registry.Registry { return registry.New(w.options) }

func (w *world) run(ctx context.Context) {
	go w.queue.Run(ctx)
	go w.registry.Run(ctx)
}

func (w *world) close(t *testing.T) {
	t.Helper()
	if err := w.authority.Close(); err != nil {
		t.Error(err)
	}
	if err := w.engine.Close(); err != nil {
		t.Error(err)
	}
}

// noFilter selects all nodes.
var noFilter store.NodeFilter

func unwrapped(e store.Engine) store.Engine { return e }

// inline makes keys at once: EC keys cost nothing.
type inline struct{}

func (inline) NewKey(_ context.Context, alg ca.KeyAlgorithm) (crypto.Signer, error) {
	return ca.GenerateKey(alg)
}

func newCA(t *testing.T, dir string) {
	t.Helper()
	if err := directory.Create(filepath.Join(dir, "ca"), directory.CreateOptions{Host: "crash.test", Key: ca.ECP256}); err != nil {
		t.Fatal(err)
	}
}

// newCSR returns a CSR, and the key that stays with the caller.
func newCSR(name string) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key, err
}
