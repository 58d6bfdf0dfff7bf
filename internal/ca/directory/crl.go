package directory

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/pemfile"
)

// crlChain is ca_crl.pem in memory: the CA's own CRL and the other issuers' CRLs. The entries of the own CRL
// are encoded already, so that the next CRL only appends to them. A crlChain is immutable.
type crlChain struct {
	entryList
	number     *big.Int
	thisUpdate time.Time
	nextUpdate time.Time
	flaw       string // why the CA's own CRL must be signed anew; "": it need not
	foreign    []foreignCRL
	pem        []byte // the whole file
	encoded    []byte // the part of it that is the CA's own
}

// maxNumberBits is the most bits of a positive DER INTEGER with 20 octets.
const maxNumberBits = 20*8 - 1

// foreignCRL is another issuer's CRL, which espm can't renew and carries along as it is.
type foreignCRL struct {
	issuer     string
	rawIssuer  string
	number     *big.Int // nil: it has none
	thisUpdate time.Time
	nextUpdate time.Time // zero: it has none
	entries    int
	pem        []byte
	outside    bool  // the CA's chain does not have the issuer, so no agent uses the CRL
	bad        error // not nil: the issuer in the CA's chain did not sign it
}

// crlContents is the content of a file like ca_crl.pem.
type crlContents struct {
	*crlChain                   // has the first CRL of the CA itself
	listed    pemfile.SerialSet // the serials in that CRL
	more      []*crlChain       // further CRLs of the CA itself; espm never writes such a file
}

// own returns all CRLs of the CA itself.
func (c *crlContents) own() []*crlChain { return append([]*crlChain{c.crlChain}, c.more...) }

// parseCRLs reads a file like ca_crl.pem of the CA whose certificates are chain.
func parseCRLs(data []byte, chain []*pemfile.RawCertificate) (*crlContents, error) {
	c := &crlContents{crlChain: &crlChain{pem: data}}
	issuers := make(map[string]bool)
	for block, encoded := range pemfile.Texts(data) {
		crl, err := pemfile.ParseCRL(block)
		if err != nil {
			return nil, err
		}
		issuers[string(crl.RawIssuer)] = true
		if bytes.Equal(crl.RawIssuer, chain[0].RawSubject) {
			if err := c.add(crl, encoded, chain[0].X509); err != nil {
				return nil, err
			}
			continue
		}
		c.foreign = append(c.foreign, newForeign(crl, encoded, chain))
	}
	for _, cert := range chain {
		if !issuers[string(cert.RawSubject)] {
			return nil, fmt.Errorf("holds no CRL of %q; agents check every certificate of the chain"+
				" (certificate_revocation = chain) and would refuse it", cert.Subject())
		}
	}
	return c, nil
}

// newForeign checks a CRL's signature with its issuer's certificate in the chain. It does not check a CRL whose
// issuer the chain does not have, as no agent uses it, and a signature of a kind that Go does not have.
func newForeign(crl *pemfile.RevocationList, encoded []byte, chain []*pemfile.RawCertificate) foreignCRL {
	f := foreignCRL{
		issuer: crl.Issuer(), rawIssuer: string(crl.RawIssuer), number: crl.Number,
		thisUpdate: crl.ThisUpdate, nextUpdate: crl.NextUpdate,
		entries: crl.Entries.Count(), pem: encoded, outside: true,
	}
	for _, cert := range chain {
		if !bytes.Equal(crl.RawIssuer, cert.RawSubject) {
			continue
		}
		f.outside = false
		if cert.X509 == nil {
			return f
		}
		if err := crl.CheckSignatureFrom(cert.X509); !errors.Is(err, pemfile.ErrUnverifiable) {
			f.bad = err
		}
		return f
	}
	return f
}

// add adds a CRL of the CA itself.
func (c *crlContents) add(crl *pemfile.RevocationList, encoded []byte, issuer *x509.Certificate) error {
	into, first := c.crlChain, c.number == nil
	if !first {
		into = &crlChain{}
	}
	listed, err := into.parse(crl, issuer)
	if err != nil {
		return err
	}
	into.encoded = encoded
	if first {
		c.listed = listed
	} else {
		c.more = append(c.more, into)
	}
	return nil
}

// parse sets c to a CRL of the CA itself. The bytes of its entries stay the same.
func (c *crlChain) parse(crl *pemfile.RevocationList, issuer *x509.Certificate) (pemfile.SerialSet, error) {
	none := pemfile.SerialSet{}
	if err := crl.CheckSignatureFrom(issuer); err != nil {
		return none, fmt.Errorf("the CRL of %q is not signed by its key: %w", issuer.Subject, err)
	}
	if err := crl.CheckWhole(); err != nil {
		return none, err // the next CRL would not have the extension
	}
	c.number, c.thisUpdate, c.nextUpdate = pemfile.NumberOf(crl), crl.ThisUpdate, crl.NextUpdate
	if c.number.Sign() < 0 || following(c.number).BitLen() > maxNumberBits {
		return none, fmt.Errorf("the CRL of %q has number %d; what follows it would not be a number of at most 20 octets"+
			" (RFC 5280 section 5.2.3)", issuer.Subject, c.number)
	}
	var listed pemfile.SerialSet
	c.entryList, listed = newEntryList(crl.Entries)
	c.flaw = c.flawOf(crl)
	return listed, nil
}

// flawOf says why a CRL of another program must be replaced by a new one, "" if it need not.
func (c *crlChain) flawOf(crl *pemfile.RevocationList) string {
	switch {
	case c.repeated:
		return "a serial is on it more than once"
	case c.newest.After(crl.ThisUpdate):
		return "an entry is dated after the CRL's own time"
	case crl.WeakHash() != "":
		return "its signature has the hash " + crl.WeakHash()
	case crl.EmptyEntries:
		return "its list of entries is present but empty"
	case crl.Version < 2 || crl.Number == nil || crl.AuthorityKeyID == nil:
		return "it lacks a number or the identifier of the CA's key"
	}
	return ""
}

// canSignCRLs reports at the start what would make the first revocation fail.
func canSignCRLs(issuer *x509.Certificate) error {
	if issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return fmt.Errorf("%q may not sign CRLs (its key usage lacks cRLSign)", issuer.Subject)
	}
	return nil
}

// withKeyID returns the CA's certificate with a subject key identifier. If it has none, CRLs and leaves name the
// identifier that RFC 5280 section 4.2.1.2 derives from the key.
func withKeyID(issuer *x509.Certificate) (*x509.Certificate, error) {
	if len(issuer.SubjectKeyId) > 0 {
		return issuer, nil
	}
	id, err := ca.KeyID(issuer.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", issuer.Subject, err)
	}
	with := *issuer
	with.SubjectKeyId = id
	return &with, nil
}

// next signs a CRL with these entries and this number, and returns it with the foreign CRLs.
func (s signer) next(number *big.Int, list entryList, foreign []foreignCRL, now time.Time, validity time.Duration) (*crlChain, error) {
	thisUpdate := issueTime(now)
	list, err := list.mended(thisUpdate)
	if err != nil {
		return nil, err
	}
	c := &crlChain{entryList: list, number: number, thisUpdate: thisUpdate, nextUpdate: now.UTC().Truncate(time.Second).Add(validity)}
	der, err := s.newCRL(number, list.entries, c.thisUpdate, c.nextUpdate)
	if err != nil {
		return nil, err
	}
	c.encoded = pemfile.Encode(pemfile.CRL, der...)
	return c.withForeign(foreign), nil
}

// issueTime is the thisUpdate of a CRL that is signed now, and the date of its new entries: no entry is dated after
// its CRL.
func issueTime(now time.Time) time.Time { return now.UTC().Truncate(time.Second).Add(-time.Second) }

// rest returns the other issuers' CRLs.
func (c *crlChain) rest() []byte {
	var rest []byte
	for _, f := range c.foreign {
		rest = append(rest, f.pem...)
	}
	return rest
}

// withForeign returns a copy of c with these foreign CRLs.
func (c *crlChain) withForeign(foreign []foreignCRL) *crlChain {
	changed := *c
	changed.foreign, changed.pem = foreign, c.encoded
	if len(foreign) > 0 {
		changed.pem = bytes.Clone(c.encoded)
	}
	for _, f := range foreign {
		changed.pem = append(changed.pem, f.pem...)
	}
	changed.encoded = changed.pem[:len(c.encoded):len(c.encoded)]
	return &changed
}

func following(n *big.Int) *big.Int { return new(big.Int).Add(n, big.NewInt(1)) }
