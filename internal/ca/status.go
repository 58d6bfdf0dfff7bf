package ca

import (
	"fmt"
	"time"
)

// Status is the state of an authority's certificate and CRLs.
type Status struct {
	Subject string // of the CA's certificate
	// NotBefore and NotAfter are of the CA's certificate.
	NotBefore, NotAfter time.Time

	CRL     CRLStatus   // the CA's own
	Foreign []CRLStatus // of the other CAs in the chain; espm can't sign these
	Bytes   int         // of all CRLs in PEM: what an agent downloads

	// Files are the files with CRLs: the CA's own first, then the published copies.
	Files []CRLFile
}

// CheckInForce returns an error if the CA's certificate has ended or is not valid yet.
func (s Status) CheckInForce(now time.Time) error { return checkInForce(s.NotBefore, s.NotAfter, now) }

func checkInForce(notBefore, notAfter, now time.Time) error {
	switch {
	case now.Before(notBefore):
		return fmt.Errorf("the CA's certificate is not valid before %s: is the clock right?", notBefore.UTC().Format(time.RFC3339))
	case !now.Before(notAfter):
		return fmt.Errorf("the CA's certificate ended at %s", notAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// CRLStatus is the state of one CRL.
type CRLStatus struct {
	Issuer     string
	Number     string // decimal; "" if it has none
	Entries    int
	EntryBytes int // bytes of all entries in PEM, without the rest of the CRL. The CA's own CRL only
	Recent     int // entries of the last seven days. The CA's own CRL only
	ThisUpdate time.Time
	NextUpdate time.Time // zero if it has none
	Outside    bool      // the CA's chain does not have the issuer, so no agent uses the CRL
}

// CRLFile is a file that holds the CRLs.
type CRLFile struct {
	Path  string
	Error string    // why the last write failed; "": no write has failed
	Since time.Time // when Error got this value; zero: no write since the start
}

// PEMBytes returns about how many bytes DER needs in PEM: base64, 64 characters a line.
func PEMBytes(der int) int { return der*4/3 + der/48 }

// Recently is the time in which a revocation counts as recent.
const Recently = 7 * 24 * time.Hour
