// Package crash kills espm with SIGKILL and checks its data afterwards.
//
// These are the durable steps:
//   - of a provision: the commit of node and intent; the
//     authority's inventory line and its certificate file; the commit of the
//     certificate;
//   - of a terminate: the commit that removes the node and
//     orders the revocation; the CRL; its published copies; the removal of the
//     certificate file; the commit of the receipt;
//   - of the directory's Care: the CRL, the file with its number, and its copies.
//
// After each step the audit log is sealed, in one more commit. steps_test kills before and
// after each step. random_test kills a daemon under load at random moments.
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

// world is espm without its sockets, in a folder.
type world struct {
	engine    store.Engine
	store     *store.Store
	authority *directory.Authority
	options   registry.Options
	queue     *revoke.Queue
	registry  *registry.Registry
	audit     *audit.Log // does not run: tests seal it
}

// open builds a world. wrap and disk can intercept the durable steps.
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
		CRLValidity: ca.MaxTTL, // so long that a new CA's CRL has less than a third left
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

// forgetful returns a registry with the same records but no answers in memory, as after a restart.
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

// inline generates keys on demand: EC keys are fast.
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

// newCSR returns a CSR and its key, which the caller keeps.
func newCSR(name string) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key, err
}
