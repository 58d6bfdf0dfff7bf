// Package directory is the authority that owns a Puppet CA directory. Puppet
// itself takes no lock on its files, so such a directory has one writer: it
// is for a Puppet Server whose CA service is disabled.
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

// Traits implements ca.Authority: a serial is revoked, whatever has its name.
func (a *Authority) Traits() ca.Traits { return ca.Traits{} }

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

// Check looks at the request, the CA's end and signed/. A certificate there that may be in force and that espm can't
// read is node.ErrForeignCertificate.
func (a *Authority) Check(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	now := a.opts.Now()
	if err := errors.Join(ctx.Err(), ca.CheckRequest(r)); err != nil {
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
		return nil, fmt.Errorf("check %s: %w: serial %s in %s, which espm can't read: %w", r.Certname,
			node.ErrForeignCertificate, node.SerialOf(cert.SerialNumber), a.signed(r.Certname), cert.Unreadable)
	}
	return cert.X509, nil
}

func (a *crlKeeper) revoked(s node.Serial) bool {
	key, ok := keyOfSerial(s)
	return ok && a.listed.has(key)
}

// ttl returns the one asked for, or the default as far as the CA's life allows.
func (a *Authority) ttl(asked time.Duration, now time.Time) time.Duration {
	if asked != 0 {
		return asked
	}
	return min(a.opts.TTL, a.issuer.NotAfter.Sub(now.Truncate(time.Second)))
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

// Find looks in signed/, and for a serial that is not there, in the inventory.
func (a *Authority) Find(ctx context.Context, q ca.Query) (ca.Found, error) {
	if err := ctx.Err(); err != nil {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, err)
	}
	cert, err := a.readSigned(q.Certname)
	if err != nil && !errors.Is(err, node.ErrForeignCertificate) {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, err)
	}
	if cert != nil && matches(cert, q) {
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

func matches(cert *pemfile.RawCertificate, q ca.Query) bool {
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
		return nil, err // it becomes a path
	}
	cert, err := a.standing(name)
	if errors.Is(err, node.ErrForeignCertificate) {
		return nil, err
	}
	return cert, unavailable(err)
}

// standing does that for a checked name. Its errors are this one file's: whether
// they stand for more, the caller knows.
func (a *folder) standing(name node.Certname) (*pemfile.RawCertificate, error) {
	data, err := os.ReadFile(a.signed(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	certs, _, err := parseCertificates(data)
	if err != nil {
		// Another program wrote it: espm replaces files whole. The name may have a certificate in force nevertheless.
		return nil, fmt.Errorf("%w: %s, which is no certificate (%w): look at it, and move it away", node.ErrForeignCertificate, a.signed(name), err)
	}
	return certs[0], nil
}

func (a *folder) signed(name node.Certname) string {
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

// nameLocks order the changes of one signed/NAME.pem: that a revoked
// certificate stands there and that it is removed must be one step.
type nameLocks struct {
	seed  maphash.Seed
	locks [64]sync.Mutex
}

// lock returns the unlock. The locks of several names are taken in one order.
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
