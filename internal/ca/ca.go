// Package ca defines the certificate authority that espm needs. It also has
// the parts that authorities share: the certificate profile, Puppet's extensions, CSR checks
// and the pool of ready keys. Each authority is a sub-package, and passes the test suite catest.
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
	// Traits returns the properties in which authorities differ. It neither reads files
	// nor uses the network.
	Traits() Traits

	// NewSerial returns a serial number for the next Sign, so that the caller can
	// store it first. It returns "" if the authority chooses serials by itself.
	NewSerial() node.Serial

	// Check returns the error that Sign would return for the request, and changes nothing.
	// The request needs no key and no serial. Check also returns the name's current certificate,
	// neither expired nor revoked, or nil if there is none.
	Check(ctx context.Context, r Request) (current *x509.Certificate, err error)

	// Sign issues one certificate. The certificate is durable at the authority when Sign returns.
	// After an error the certificate may exist: ask Find. Only an error that wraps
	// ErrNotIssued means that there is none. The errors node.ErrForeignCertificate,
	// ErrForeignRequest and ErrRefused name an obstacle at the authority. If Sign returns a certificate
	// together with an error, the authority issued it for another key.
	// Find does not report that certificate: the caller must revoke it.
	Sign(ctx context.Context, r Request) (*x509.Certificate, error)

	// Find returns the certificate of a Sign whose outcome is unknown. The answer is final:
	// a certificate that Find does not report is never issued later. If it is too early for a final
	// answer, the error wraps node.ErrUnavailable.
	Find(ctx context.Context, q Query) (Found, error)

	// Revoke adds certificates to the CRL and publishes the CRL. It returns one receipt for each target, in
	// order. Without an error, all targets are durable and published. To revoke a certificate again is no
	// error: it adds no entry, and publishes the CRL if that is still due. After an error any part may
	// be done: call again. A receipt with a serial is valid even if an error comes with it.
	// A *RefusedError says why the other targets have none. An error in it that wraps
	// ErrImpossible is final: the authority will never revoke that certificate.
	Revoke(ctx context.Context, targets []Target) ([]node.Receipt, error)

	// Listed returns the number of the CA's CRL if the CRL lists the serial, else "". While no
	// Revoke runs, the answer is final: no earlier Revoke, of this process or an earlier one, adds the
	// serial later. If a final answer is not possible now, the error wraps node.ErrUnavailable.
	Listed(ctx context.Context, serial node.Serial) (crlNumber string, err error)

	// Status returns the state of the CA's certificate and CRLs.
	Status(ctx context.Context) (Status, error)

	// Trust returns the CA's certificates and CRLs as agents need them.
	Trust(ctx context.Context) (Trust, error)
}

// Traits are the properties of an authority that a caller must respect.
type Traits struct {
	// RevokesByName: a revocation names the certname, not the serial. A late revocation may
	// therefore revoke a newer certificate of the name.
	RevokesByName bool
	// ChoosesSerial: NewSerial returns "".
	ChoosesSerial bool
	// Protected are the certnames that the authority itself uses. Their certificates
	// must not be revoked. The list may grow later.
	Protected []node.Certname
}

// FormChecker is an authority whose Sign refuses a name that another certificate or request has.
// CheckForm is Check without that test. Callers use it directly before Sign, so that the
// authority does not test the name twice.
type FormChecker interface {
	CheckForm(ctx context.Context, r Request) error
}

// RefusedError says which targets of a Revoke were refused; the others were revoked. Targets has
// an entry for each target, in order: the reason, or nil if the target has a receipt.
type RefusedError struct {
	Targets []error
}

// ErrImpossible means that the authority has no way to revoke that certificate.
var ErrImpossible = errors.New("the CA can't revoke it")

// ErrNotIssued marks the errors of a Sign that issued no certificate, and left nothing that could become one.
var ErrNotIssued = errors.New("no certificate was issued")

// NotIssued marks an error with ErrNotIssued. Its text stays.
func NotIssued(err error) error { return notIssued{err} }

type notIssued struct{ error }

func (e notIssued) Is(target error) bool { return target == ErrNotIssued }

func (e notIssued) Unwrap() error { return e.error }

func (e *RefusedError) Error() string { return errors.Join(e.Targets...).Error() }

// Brief returns an authority's status, but Recent and EntryBytes may be 0, as counting them may be slow.
// Brief is cheap enough for several calls a minute, however long the CRL. It calls the
// authority's method Brief if there is one, else Status.
func Brief(ctx context.Context, authority Authority) (Status, error) {
	if a, ok := authority.(interface {
		Brief(context.Context) (Status, error)
	}); ok {
		return a.Brief(ctx)
	}
	return authority.Status(ctx)
}

// Request asks for one leaf certificate. Exactly one of Key and CSR is set.
// Names, TTL and extensions have passed CheckRequest.
type Request struct {
	Certname    node.Certname
	Serial      node.Serial              // from NewSerial, for this one Sign
	Key         crypto.Signer            // a key generated by espm
	CSR         *x509.CertificateRequest // a caller's, checked by ParseCSR
	DNSAltNames []string                 // without the certname, which Sign adds; sorted, no duplicates
	Extensions  []Extension              // Puppet's, sorted by OID, no duplicates
	TTL         time.Duration            // from now; 0: the authority's default, but never beyond the CA's end
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

// Query names a Sign whose outcome is unknown, with the data of its stored intent.
type Query struct {
	Certname node.Certname
	Serial   node.Serial // "" where the authority chose it
	KeyHash  string      // as the function KeyHash returns it
	Since    time.Time   // when the intent was stored; Sign began later
}

// Found is the answer of Find. Issued without a Certificate means that the authority used the
// serial, but has no copy of the certificate.
type Found struct {
	Issued      bool
	Serial      node.Serial
	Certificate *x509.Certificate
}

// Target is a certificate to revoke. The CRL shows Reason if the
// authority lets callers choose one. "" means node.KeyCompromise, as in Puppet.
// A certificate that is revoked already keeps its first reason.
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
