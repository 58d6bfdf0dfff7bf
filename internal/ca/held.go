package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

// Held is what an authority holds under a name, whoever asked for it.
type Held struct {
	// Others are further certificates of the name that are in force, newest first, as far as the authority can
	// tell; none where Problem is set.
	Others      []Issued
	Certificate *x509.Certificate // nil: none, or none that can be read
	Problem     error             // why it is not one of this CA's that is in force; nil where it is, or where there is none
}

// Issued is a certificate of which the authority has no copy, but knows that it issued it.
type Issued struct {
	Serial              node.Serial
	NotBefore, NotAfter time.Time
}

// CheckHeld says why a certificate that stands under a name is not one that
// issuer signed for that name and that has not expired. Whether it is revoked
// the authority knows.
func CheckHeld(cert *x509.Certificate, name node.Certname, issuer *x509.Certificate, now time.Time) error {
	switch {
	case cert.IsCA:
		return errors.New("it is a CA's certificate")
	case cert.Subject.CommonName != string(name):
		return fmt.Errorf("it was issued to %s", node.Quote(cert.Subject.CommonName))
	case now.After(cert.NotAfter):
		return fmt.Errorf("it has expired, on %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	// How strong the signature is does not matter: what the CA signed, agents may take, and it must be possible to revoke.
	if err := pemfile.CheckIssued(cert.Raw, issuer); err != nil {
		return fmt.Errorf("it is not signed by this CA: %w", err)
	}
	return nil
}

// ErrHeldRevoked is the Problem of a certificate that is on the CA's CRL.
var ErrHeldRevoked = errors.New("it is revoked")
