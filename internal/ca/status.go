package ca

import "time"

// Status is how an authority's certificates and CRLs stand.
type Status struct {
	Subject  string    // of the CA's certificate
	NotAfter time.Time // of the CA's certificate

	CRL     CRLStatus   // the CA's own
	Foreign []CRLStatus // those of the other CAs in the chain, which espm can't sign
	Bytes   int         // of all CRLs in PEM: what an agent downloads

	// Files are where the CRLs are kept: the CA's own first, then the published copies.
	Files []CRLFile
}

// CRLStatus is one CRL.
type CRLStatus struct {
	Issuer     string
	Number     string // decimal; "" where it has none
	Entries    int
	EntryBytes int // of all entries, as PEM, without what a CRL has besides. The CA's own CRL only
	Recent     int // of the entries: revoked in the last seven days. The CA's own CRL only
	ThisUpdate time.Time
	NextUpdate time.Time // zero where it has none
	Outside    bool      // no certificate of the CA's chain is the issuer's: no agent asks for it
}

// CRLFile is a file that holds the CRLs.
type CRLFile struct {
	Path  string
	Error string    // why it can't be written; "": it is as it should be, as far as is known
	Since time.Time // when that came to be so; zero: it has not been written since the start
}

// PEMBytes returns about how many bytes DER takes in PEM: base64, 64 characters a line.
func PEMBytes(der int) int { return der*4/3 + der/48 }

// Recently is how far back revocations count as recent.
const Recently = 7 * 24 * time.Hour
