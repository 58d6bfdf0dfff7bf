package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

// Existing is the certificate that an authority has under a name, whoever asked for it.
type Existing struct {
	// Others are the other certificates of the name that are in force and that the authority knows, newest
	// first. It is empty where Problem is set.
	Others      []Issued
	Certificate *x509.Certificate // nil: the name has none, or it can't be read
	Problem     error             // why the certificate is not in force, or not of this CA; nil: it is, or there is none
}

// Issued is a certificate of which the authority has no copy, but knows that it issued it.
type Issued struct {
	Serial              node.Serial
	NotBefore, NotAfter time.Time
}

// CheckExisting returns nil if issuer signed the certificate for that name, and it has not expired.
// The error says what is wrong. CheckExisting does not know whether the certificate is revoked.
func CheckExisting(cert *x509.Certificate, name node.Certname, issuer *x509.Certificate, now time.Time) error {
	switch {
	case cert.IsCA:
		return errors.New("it is a CA's certificate")
	case cert.Subject.CommonName != string(name):
		return fmt.Errorf("it was issued to %s", node.Quote(cert.Subject.CommonName))
	case now.After(cert.NotAfter):
		return fmt.Errorf("it has expired, on %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := CheckRevocable(node.SerialOf(cert.SerialNumber)); err != nil {
		return err
	}
	// The strength of the signature does not matter: what the CA signed must be possible to revoke.
	if err := pemfile.CheckIssued(cert.Raw, issuer); err != nil {
		return fmt.Errorf("it is not signed by this CA: %w", err)
	}
	return nil
}

// CheckRevocable returns an error that wraps ErrImpossible if no CRL can list the serial.
func CheckRevocable(serial node.Serial) error {
	if n, ok := serial.Int(); ok {
		if _, ok := pemfile.KeyOf(n); ok {
			return nil
		}
	}
	return fmt.Errorf("%w: its serial number has more than 20 octets, which RFC 5280 section 4.1.2.2 forbids. It is valid until it expires", ErrImpossible)
}

// ErrExistingRevoked is the Problem of a certificate that is on the CA's CRL.
var ErrExistingRevoked = errors.New("it is revoked")
