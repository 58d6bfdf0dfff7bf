// Package directory is the authority that owns a Puppet CA directory. Puppet
// does not lock the files of its CA, so only one program may write there. Use this authority
// with a Puppet Server whose CA service is disabled.
package directory

import (
	"context"
	"crypto/rand"
	"crypto/x509"
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
	"github.com/espm-project/espm/internal/pemfile"
)

// Traits implements ca.Authority. This authority revokes by serial and lets the caller choose serials.
func (a *Authority) Traits() ca.Traits { return ca.Traits{} }

// NewSerial returns 64 random bits, never zero. They are unique in practice, without a
// list of all serials (RFC 5280 section 4.1.2.2).
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

// Check checks the request, the CA's end and signed/. If signed/ has a certificate that may be in force and that
// espm can't read, the error is node.ErrForeignCertificate.
func (a *Authority) Check(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	now := a.opts.Now()
	if err := errors.Join(ctx.Err(), ca.CheckRequest(r), a.opts.Clock.Check()); err != nil {
		return nil, fmt.Errorf("check %s: %w", r.Certname, err)
	}
	if _, _, err := ca.Validity(a.ttl(r.TTL, now), now, a.issuer); err != nil {
		return nil, fmt.Errorf("check %s: %w", r.Certname, err)
	}
	cert, err := a.readSigned(r.Certname)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", r.Certname, err)
	}
	if cert == nil || !cert.NotAfter.IsZero() && now.After(cert.NotAfter) || a.revoked(node.SerialOf(cert.SerialNumber)) {
		return nil, nil
	}
	if cert.X509 == nil {
		return nil, fmt.Errorf("check %s: %w: serial %s in %s, which espm can't read: revoke it by its serial, or move the file away: %w", r.Certname,
			node.ErrForeignCertificate, node.SerialOf(cert.SerialNumber), a.signed(r.Certname), cert.Unreadable)
	}
	return cert.X509, nil
}

func (a *crlKeeper) revoked(s node.Serial) bool {
	key, ok := keyOfSerial(s)
	return ok && a.listed.has(key)
}

// ttl returns the TTL of the request, or else the default, limited by the CA's end.
func (a *Authority) ttl(asked time.Duration, now time.Time) time.Duration {
	if asked != 0 {
		return asked
	}
	return min(a.opts.TTL, a.issuer.NotAfter.Sub(now.Truncate(time.Second)))
}

// Sign issues a certificate. It first adds the serial to the inventory, durably, and then writes
// signed/NAME.pem. So the inventory has the serial of every certificate, even after a crash.
func (a *Authority) Sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	if (r.Key == nil) == (r.CSR == nil) {
		return nil, fmt.Errorf("sign %s: want a key or a CSR, one of them", r.Certname)
	}
	if err := errors.Join(ctx.Err(), ca.CheckRequest(r), a.opts.Clock.Check()); err != nil {
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
	encoded := pemfile.Encode(pemfile.Certificate, cert.Raw)
	if err := a.opts.Disk.WriteFile(a.signed(r.Certname), encoded, 0o644); err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Certname, unavailable(err))
	}
	return cert, nil
}

func (a *Authority) issue(r ca.Request) (*x509.Certificate, error) {
	now := a.opts.Now()
	r.TTL = a.ttl(r.TTL, now)
	template, err := ca.Leaf(r, now, a.issuer)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.issuer, r.PublicKey(), a.signer.key)
	if err != nil {
		return nil, fmt.Errorf("create certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// Find reads signed/NAME.pem. If that has another certificate, Find searches the inventory for the serial.
func (a *Authority) Find(ctx context.Context, q ca.Query) (ca.Found, error) {
	if err := ctx.Err(); err != nil {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, err)
	}
	cert, err := a.readSigned(q.Certname)
	if err != nil && !errors.Is(err, node.ErrForeignCertificate) {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, err)
	}
	if cert != nil && a.matches(cert, q) {
		return ca.Found{Issued: true, Serial: node.SerialOf(cert.SerialNumber), Certificate: cert.X509}, nil
	}
	if q.Serial == "" {
		return ca.Found{}, nil
	}
	issued, err := a.inventory.has(q.Serial, q.Certname)
	if err != nil {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, unavailable(err))
	}
	if !issued {
		return ca.Found{}, nil
	}
	return ca.Found{Issued: true, Serial: q.Serial}, nil
}

// matches reports whether a certificate is the one of a query. Callers check a certificate that they get, so
// only what they don't get is checked here.
func (a *folder) matches(cert *pemfile.RawCertificate, q ca.Query) bool {
	if cert.X509 == nil && (cert.Subject() != "CN="+string(q.Certname) || pemfile.CheckIssued(cert.Raw, a.issuer) != nil) {
		return false
	}
	if q.Serial != "" {
		return node.SerialOf(cert.SerialNumber) == q.Serial
	}
	return ca.HashOf(cert.RawSubjectPublicKeyInfo) == q.KeyHash
}

// Trust returns the chain and the CRLs from memory.
func (a *Authority) Trust(context.Context) (ca.Trust, error) {
	return ca.Trust{CertificatesPEM: a.chainPEM, CRLsPEM: a.crl.Load().pem}, nil
}

// readSigned returns the certificate in signed/, nil if the name has none. A file that is no certificate is
// node.ErrForeignCertificate.
func (a *folder) readSigned(name node.Certname) (*pemfile.RawCertificate, error) {
	if _, err := node.ParseCertname(string(name)); err != nil {
		return nil, err // the name becomes a path
	}
	cert, err := a.readCertificate(name)
	if errors.Is(err, node.ErrForeignCertificate) {
		return nil, err
	}
	return cert, unavailable(err)
}

// readCertificate is readSigned for a checked name. Its errors are of this one file and don't
// wrap node.ErrUnavailable.
func (a *folder) readCertificate(name node.Certname) (*pemfile.RawCertificate, error) {
	data, err := os.ReadFile(a.signed(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	certs, _, err := parseCertificates(data)
	if err != nil {
		// Another program wrote it, as espm replaces files atomically. The name may have a certificate in force.
		return nil, fmt.Errorf("%w: %s is no certificate (%w): find out what it is, and move it away", node.ErrForeignCertificate, a.signed(name), err)
	}
	return certs[0], nil
}

func (a *folder) signed(name node.Certname) string {
	return a.file("signed", string(name)+".pem")
}

// unavailable wraps an error of the disk (full, read-only, no permission) as node.ErrUnavailable.
// The request is correct, and the caller may retry it later.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", node.ErrUnavailable, err)
}

// nameLocks lock signed/NAME.pem by name. The file must not change between the check
// that it has a revoked certificate and its removal.
type nameLocks struct {
	seed  maphash.Seed
	locks [64]sync.Mutex
}

// lock locks the names and returns the function that unlocks them. All callers lock in the same
// order, so that they can't deadlock.
func (l *nameLocks) lock(names ...node.Certname) func() {
	var wanted [len(l.locks)]bool
	for _, name := range names {
		wanted[maphash.String(l.seed, string(name))%uint64(len(l.locks))] = true
	}
	for i := range wanted {
		if wanted[i] {
			l.locks[i].Lock()
		}
	}
	return func() {
		for i := range wanted {
			if wanted[i] {
				l.locks[i].Unlock()
			}
		}
	}
}
