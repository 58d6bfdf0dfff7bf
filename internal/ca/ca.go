// Package ca is what espm asks of a certificate authority, and what its
// authorities share: the certificate profile, Puppet's extensions, CSR checks
// and the pool of ready keys. Authorities are sub-packages; the one suite
// that each passes is catest.
package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// Authority signs and revokes for Puppet. All methods may be called at once.
// An authority that can't act now (down, disk full) returns an error that
// wraps node.ErrUnavailable.
type Authority interface {
	// Traits returns what the authority does otherwise than others. It asks nothing of
	// the outside world.
	Traits() Traits

	// NewSerial returns a serial number for the next Sign, so that it can be
	// written down before; "" where the authority chooses by itself.
	NewSerial() node.Serial

	// Check tells, without side effects, what Sign would refuse: the errors
	// are those of Sign. Neither a key nor a serial need be set. It returns the certificate
	// that stands under the name now, neither expired nor revoked, nil where there is none.
	Check(ctx context.Context, r Request) (current *x509.Certificate, err error)

	// Sign issues one certificate. It is durable at the authority when Sign
	// returns. After an error it may have been issued or not: Find tells. Only
	// an error that wraps node.ErrInvalid says for certain that it was not. What
	// stands in the way at the authority is node.ErrForeignCertificate,
	// ErrForeignRequest or ErrRefused. A certificate that comes with the error was signed
	// at this Sign's order for another key. Find does not report it: the caller must revoke it.
	Sign(ctx context.Context, r Request) (*x509.Certificate, error)

	// Find tells what became of a Sign that was cut short: a certificate of that name. Its answer is final:
	// what it does not report is not issued later. Where it is too early to say,
	// the error wraps node.ErrUnavailable.
	Find(ctx context.Context, q Query) (Found, error)

	// Revoke puts certificates on the CRL and publishes it; when it returns
	// without an error both are durable, for all of them. It returns a receipt for
	// each, in order. Revoking one that is revoked already is no error, adds
	// no entry and publishes again what is not published. After an error any
	// part of it may have been done: call again. The receipts that come with an error, those
	// with a serial, stand nevertheless; a *RefusedError says why the others have none. One that wraps
	// ErrImpossible is final: the authority will never revoke that certificate.
	Revoke(ctx context.Context, targets []Target) ([]node.Receipt, error)

	// Listed returns the number of the CA's CRL if that lists a serial, else "". The answer is final while no
	// Revoke is under way: no earlier one, of this process or of one before, adds the serial
	// later. Where that can't be told now, the error wraps node.ErrUnavailable.
	Listed(ctx context.Context, serial node.Serial) (crlNumber string, err error)

	// Status tells how the CA's certificate and its CRLs stand.
	Status(ctx context.Context) (Status, error)

	// Trust returns the CA's certificates and CRLs as agents need them.
	Trust(ctx context.Context) (Trust, error)
}

// Traits are what a caller must know of an authority to use it safely.
type Traits struct {
	// RevokesByName: a revocation is asked for by name alone, so a late one may
	// reach whatever certificate has the name by then.
	RevokesByName bool
	// ChoosesSerial: NewSerial returns "".
	ChoosesSerial bool
	// Protected are the certnames that the authority itself works with. Their certificates
	// must not be revoked. It may know more of them later.
	Protected []node.Certname
}

// FormChecker is an authority whose Sign itself refuses a name at which
// something stands that is not the request's. So before a Sign, where Check would look
// at the name a second time, CheckForm is enough: it is Check without that.
type FormChecker interface {
	CheckForm(ctx context.Context, r Request) error
}

// RefusedError is what an authority refused of a batch of revocations, while it carried
// out the rest: for each target, in order, why it has no receipt, nil where it has one.
type RefusedError struct {
	Targets []error
}

// ErrImpossible: the authority has no way to revoke that certificate.
var ErrImpossible = errors.New("the CA can't revoke it")

func (e *RefusedError) Error() string { return errors.Join(e.Targets...).Error() }

// Brief returns an authority's status without what has to be counted anew each time, as it depends on
// the clock: Recent, and where it is costly EntryBytes, may be 0. It is cheap
// enough to be asked for several times a minute, however long the CRL. An authority that has it has the method Brief.
func Brief(ctx context.Context, authority Authority) (Status, error) {
	if a, ok := authority.(interface {
		Brief(context.Context) (Status, error)
	}); ok {
		return a.Brief(ctx)
	}
	return authority.Status(ctx)
}

// Request asks for one leaf certificate. Exactly one of Key and CSR is set.
// It has been validated: names, TTL and extensions keep the rules of CheckRequest.
type Request struct {
	Certname    node.Certname
	Serial      node.Serial              // from NewSerial, for this one Sign
	Key         crypto.Signer            // a key generated by espm
	CSR         *x509.CertificateRequest // a caller's, checked by ParseCSR
	DNSAltNames []string                 // besides the certname, which is always there; sorted, no duplicates
	Extensions  []Extension              // Puppet's, sorted by OID, no duplicates
	TTL         time.Duration            // from now; 0: the authority's default, or what is left of the CA's life
}

// PublicKey returns the key to certify.
func (r Request) PublicKey() crypto.PublicKey {
	if r.Key != nil {
		return r.Key.Public()
	}
	return r.CSR.PublicKey
}

// Extension is one of Puppet's certificate extensions, its value a string.
type Extension struct {
	ID    asn1.ObjectIdentifier
	Value string
}

// Query names an issue that was cut short, as its intent has it.
type Query struct {
	Certname node.Certname
	Serial   node.Serial // "" where the authority chose it
	KeyHash  string      // as KeyHash gives it
	Since    time.Time   // when it was intended: Sign began after that
}

// Found is what Find knows. Issued without a Certificate: the serial was
// used, but the certificate itself is lost.
type Found struct {
	Issued      bool
	Serial      node.Serial
	Certificate *x509.Certificate
}

// Target is a certificate to revoke. Its reason stands in the CRL where the
// authority lets the caller choose one; "": node.KeyCompromise, as Puppet has it.
// One that is revoked already keeps the reason that it has.
type Target struct {
	Serial   node.Serial
	Certname node.Certname
	Reason   node.Reason
}

// Trust is what an agent needs to trust the CA: PEM chains, the signing CA first.
type Trust struct {
	CertificatesPEM []byte
	CRLsPEM         []byte
}
