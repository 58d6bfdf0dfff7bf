// Package directory is the authority that owns a Puppet CA directory. Puppet
// itself takes no lock on its files, so such a directory has one writer: it
// is for a Puppet Server whose CA service is disabled.
package directory

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math/big"
	"os"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// NewSerial returns 64 random bits, never zero. Without a register of all
// serials they are as good as unique (RFC 5280 section 4.1.2.2).
func (a *Authority) NewSerial() node.Serial {
	for {
		var b [8]byte
		if _, err := io.ReadFull(a.opts.Rand, b[:]); err != nil {
			panic(fmt.Sprintf("read random serial: %v", err)) // crypto/rand never fails
		}
		if n := new(big.Int).SetBytes(b[:]); n.Sign() != 0 {
			return node.SerialOf(n)
		}
	}
}

// Check looks at the request, the CA's end and signed/.
func (a *Authority) Check(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	now := a.opts.Now()
	if err := errors.Join(ctx.Err(), ca.CheckRequest(r)); err != nil {
		return nil, fmt.Errorf("check %s: %w", r.Certname, err)
	}
	if _, _, err := ca.Validity(a.ttl(r.TTL, now), now, a.chain[0]); err != nil {
		return nil, fmt.Errorf("check %s: %w", r.Certname, err)
	}
	cert, err := a.readSigned(r.Certname)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", r.Certname, err)
	}
	if cert == nil || now.After(cert.NotAfter) || a.revoked(node.SerialOf(cert.SerialNumber)) {
		return nil, nil
	}
	return cert, nil
}

func (a *Authority) revoked(s node.Serial) bool {
	a.revoking.Lock() // guards listed
	defer a.revoking.Unlock()
	return a.crl.Load().listed[s]
}

// ttl returns the one asked for, or the default as far as the CA's life allows.
func (a *Authority) ttl(asked time.Duration, now time.Time) time.Duration {
	if asked != 0 {
		return asked
	}
	return min(a.opts.TTL, a.chain[0].NotAfter.Sub(now.Truncate(time.Second)))
}

// Sign issues a certificate: first the inventory names its serial, durably,
// then it stands in signed/. So whatever cuts it short, no certificate exists
// whose serial is not written down.
func (a *Authority) Sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	if (r.Key == nil) == (r.CSR == nil) {
		return nil, fmt.Errorf("sign %s: want a key or a CSR, one of them", r.Certname)
	}
	if err := errors.Join(ctx.Err(), ca.CheckRequest(r)); err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Certname, err)
	}
	cert, err := a.issue(r)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Certname, err)
	}
	if err := a.inventory.append(inventoryEntry(cert)); err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Certname, unavailable(err))
	}
	defer a.names.lock(r.Certname)()
	encoded := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	if err := a.opts.Disk.WriteFile(a.signed(r.Certname), encoded, 0o644); err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Certname, unavailable(err))
	}
	return cert, nil
}

func (a *Authority) issue(r ca.Request) (*x509.Certificate, error) {
	now := a.opts.Now()
	r.TTL = a.ttl(r.TTL, now)
	template, err := ca.Leaf(r, now, a.chain[0])
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.chain[0], r.PublicKey(), a.key)
	if err != nil {
		return nil, fmt.Errorf("create certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// Find looks in signed/, and for a serial that is not there, in the inventory.
func (a *Authority) Find(ctx context.Context, q ca.Query) (ca.Found, error) {
	if err := ctx.Err(); err != nil {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, err)
	}
	cert, err := a.readSigned(q.Certname)
	if err != nil {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, err)
	}
	if cert != nil && matches(cert, q) {
		return ca.Found{Issued: true, Serial: node.SerialOf(cert.SerialNumber), Certificate: cert}, nil
	}
	if q.Serial == "" {
		return ca.Found{}, nil
	}
	issued, err := a.inventory.has(q.Serial)
	if err != nil {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, unavailable(err))
	}
	if !issued {
		return ca.Found{}, nil
	}
	return ca.Found{Issued: true, Serial: q.Serial}, nil
}

func matches(cert *x509.Certificate, q ca.Query) bool {
	if q.Serial != "" {
		return node.SerialOf(cert.SerialNumber) == q.Serial
	}
	hash, err := ca.KeyHash(cert.PublicKey)
	return err == nil && hash == q.KeyHash
}

// Revoke writes one CRL for all targets, publishes it, and removes the
// revoked certificates from signed/. A target without a certname is revoked
// by its serial alone.
func (a *Authority) Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	for _, t := range targets {
		if err := checkTarget(t); err != nil {
			return nil, err
		}
	}
	a.revoking.Lock()
	defer a.revoking.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("revoke %s: %w", describe(targets), err)
	}
	current, err := a.list(targets)
	if err != nil {
		return nil, fmt.Errorf("revoke %s: %w", describe(targets), err)
	}
	published := a.opts.Now().UTC()
	for _, t := range targets {
		err = errors.Join(err, a.discard(t))
	}
	if err != nil {
		return nil, fmt.Errorf("revoke %s: %w", describe(targets), err)
	}
	receipts := make([]node.Receipt, len(targets))
	files := append([]string{a.file("ca_crl.pem")}, a.opts.Publish...)
	for i, t := range targets {
		receipts[i] = node.Receipt{Serial: t.Serial, CRLNumber: current.number.String(), PublishedAt: published, PublishedTo: files}
	}
	return receipts, nil
}

func checkTarget(t ca.Target) error {
	if _, ok := t.Serial.Int(); !ok {
		return fmt.Errorf("revoke %s: %q is no serial number", t.Certname, t.Serial)
	}
	if _, err := node.ParseCertname(string(t.Certname)); err != nil && t.Certname != "" {
		return fmt.Errorf("revoke serial %s: %w", t.Serial, err)
	}
	if _, err := node.ParseReason(string(t.Reason)); err != nil {
		return fmt.Errorf("revoke serial %s: %w", t.Serial, err)
	}
	return nil
}

// list sees to it that the CRL on the disk and its copies list the targets.
func (a *Authority) list(targets []ca.Target) (*crlChain, error) {
	if a.unsynced {
		if err := a.resync(); err != nil {
			return nil, unavailable(err)
		}
	}
	current, err := a.withForeign(a.crl.Load())
	if err != nil {
		return nil, err
	}
	added := current.without(targets)
	if len(added) == 0 && !a.unsynced {
		return current, a.publish(current, false)
	}
	if len(added) > 0 {
		next, err := signer{issuer: a.chain[0], key: a.key, validity: a.opts.CRLValidity}.sign(current, added, a.opts.Now())
		if err != nil {
			return nil, err
		}
		current = next
	}
	if err := a.opts.Disk.WriteFile(a.file("ca_crl.pem"), current.pem, 0o644); err != nil {
		a.unsynced = true
		return nil, unavailable(errors.Join(err, a.resync()))
	}
	a.unsynced = false
	for _, t := range added {
		current.listed[t.Serial] = true
	}
	a.crl.Store(current)
	return current, a.publish(current, true)
}

// withForeign returns c with the other issuers' CRLs as they stand in the
// file now: whoever holds their keys renews them there.
func (a *Authority) withForeign(c *crlChain) (*crlChain, error) {
	if len(a.chain) == 1 && len(c.foreign) == 0 {
		return c, nil
	}
	disk, err := a.readCRLs(a.file("ca_crl.pem"))
	if err != nil || bytes.Equal(disk.foreign, c.foreign) {
		return c, unavailable(err)
	}
	renewed := *c
	renewed.foreign, renewed.pem = disk.foreign, disk.pem
	return &renewed, nil
}

// resync reads back what a failed write left: the old file or the new one.
func (a *Authority) resync() error {
	c, err := a.readCRLs(a.file("ca_crl.pem"))
	if err != nil {
		return err
	}
	a.crl.Store(c)
	return nil
}

// discard removes a revoked certificate from signed/, but not a successor's.
func (a *Authority) discard(t ca.Target) error {
	if t.Certname == "" { // known by its serial alone
		return nil
	}
	defer a.names.lock(t.Certname)()
	cert, err := a.readSigned(t.Certname)
	if err != nil || cert == nil || node.SerialOf(cert.SerialNumber) != t.Serial {
		return err
	}
	return unavailable(a.opts.Disk.Remove(a.signed(t.Certname)))
}

// Trust returns the chain and the CRLs from memory.
func (a *Authority) Trust(context.Context) (ca.Trust, error) {
	return ca.Trust{CertificatesPEM: a.chainPEM, CRLsPEM: a.crl.Load().pem}, nil
}

// readSigned returns the certificate in signed/, nil if the name has none.
func (a *Authority) readSigned(name node.Certname) (*x509.Certificate, error) {
	if _, err := node.ParseCertname(string(name)); err != nil {
		return nil, err // it becomes a path
	}
	data, err := os.ReadFile(a.signed(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable(err)
	}
	certs, _, err := parseCertificates(data)
	if err != nil {
		// Not written by us, who replace files whole; it must not block the name for ever.
		a.opts.Log.WithError(err).WithField("path", a.signed(name)).Warn("not a certificate; taken as absent")
		return nil, nil
	}
	return certs[0], nil
}

func (a *Authority) signed(name node.Certname) string {
	return a.file("signed", string(name)+".pem")
}

// unavailable marks what the disk refused (full, read-only, no permission):
// nothing is wrong with the request, and trying again later is safe.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", node.ErrUnavailable, err)
}

func describe(targets []ca.Target) string {
	switch len(targets) {
	case 0:
		return "nothing"
	case 1:
		return fmt.Sprintf("%s (serial %s)", targets[0].Certname, targets[0].Serial)
	}
	return fmt.Sprintf("%s (serial %s) and %d more", targets[0].Certname, targets[0].Serial, len(targets)-1)
}

// nameLocks order the changes of one signed/NAME.pem: that a revoked
// certificate stands there and that it is removed must be one step.
type nameLocks struct {
	seed  maphash.Seed
	once  sync.Once
	locks [64]sync.Mutex
}

// lock returns the unlock.
func (l *nameLocks) lock(name node.Certname) func() {
	l.once.Do(func() { l.seed = maphash.MakeSeed() })
	m := &l.locks[maphash.String(l.seed, string(name))%uint64(len(l.locks))]
	m.Lock()
	return m.Unlock
}
