package directory

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"github.com/espm-project/espm/internal/pemfile"
)

// crlChain is ca_crl.pem in memory: the CA's own CRL and the other issuers' CRLs. The entries of the own CRL
// are encoded already, so that the next CRL only appends to them. A crlChain is immutable.
type crlChain struct {
	number     *big.Int
	thisUpdate time.Time
	nextUpdate time.Time
	entries    []byte // DER, one after the other; only the holder of crlKeeper.revoking appends
	count      int    // of entries
	foreign    []foreignCRL
	pem        []byte // the whole file
	encoded    []byte // the part of it that is the CA's own
}

// maxNumberBits is the most bits of a positive DER INTEGER with 20 octets.
const maxNumberBits = 20*8 - 1

// foreignCRL is another issuer's CRL, which espm can't renew.
type foreignCRL struct {
	issuer     string
	rawIssuer  string
	number     *big.Int // nil: it has none
	thisUpdate time.Time
	nextUpdate time.Time // zero: it has none
	entries    int
	pem        []byte
	bad        error // not nil: the issuer in the CA's chain did not sign it
}

// crlContents is the content of a file like ca_crl.pem.
type crlContents struct {
	*crlChain             // has the first CRL of the CA itself
	listed    []serialKey // the serials in that CRL
	more      []*crlChain // further CRLs of the CA itself; espm never writes such a file
}

// own returns all CRLs of the CA itself.
func (c *crlContents) own() []*crlChain { return append([]*crlChain{c.crlChain}, c.more...) }

// parseCRLs reads a file like ca_crl.pem of the CA whose certificates are chain.
func parseCRLs(data []byte, chain []*x509.Certificate) (*crlContents, error) {
	c := &crlContents{crlChain: &crlChain{pem: data}}
	issuers := make(map[string]bool)
	for block := range pemfile.Blocks(data) {
		crl, err := pemfile.ParseCRL(block)
		if err != nil {
			return nil, err
		}
		encoded := pemfile.Encode(pemfile.CRL, block.Bytes) // without the text around it
		issuers[string(crl.RawIssuer)] = true
		if bytes.Equal(crl.RawIssuer, chain[0].RawSubject) {
			if err := c.add(crl, encoded, chain[0]); err != nil {
				return nil, err
			}
			continue
		}
		c.foreign = append(c.foreign, foreignCRL{
			issuer: crl.Issuer.String(), rawIssuer: string(crl.RawIssuer), number: crl.Number,
			thisUpdate: crl.ThisUpdate, nextUpdate: crl.NextUpdate,
			entries: len(crl.RevokedCertificateEntries), pem: encoded, bad: checkForeign(crl, chain),
		})
	}
	for _, cert := range chain {
		if !issuers[string(cert.RawSubject)] {
			return nil, fmt.Errorf("holds no CRL of %q; agents check every certificate of the chain"+
				" (certificate_revocation = chain) and would refuse it", cert.Subject)
		}
	}
	return c, nil
}

// checkForeign checks a CRL's signature with its issuer's certificate in the chain. If the chain
// does not have the issuer, no agent uses the CRL, and checkForeign returns nil.
func checkForeign(crl *x509.RevocationList, chain []*x509.Certificate) error {
	for _, cert := range chain {
		if bytes.Equal(crl.RawIssuer, cert.RawSubject) {
			return crl.CheckSignatureFrom(cert)
		}
	}
	return nil
}

// add adds a CRL of the CA itself.
func (c *crlContents) add(crl *x509.RevocationList, encoded []byte, issuer *x509.Certificate) error {
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
func (c *crlChain) parse(crl *x509.RevocationList, issuer *x509.Certificate) ([]serialKey, error) {
	if err := crl.CheckSignatureFrom(issuer); err != nil {
		return nil, fmt.Errorf("the CRL of %q is not signed by its key: %w", issuer.Subject, err)
	}
	if err := pemfile.CheckWhole(crl); err != nil {
		return nil, err // the next CRL would not have the extension
	}
	c.number, c.thisUpdate, c.nextUpdate = pemfile.NumberOf(crl), crl.ThisUpdate, crl.NextUpdate
	if c.number.Sign() < 0 || following(c.number).BitLen() > maxNumberBits {
		return nil, fmt.Errorf("the CRL of %q has number %d; what follows it would not be a number of at most 20 octets"+
			" (RFC 5280 section 5.2.3)", issuer.Subject, c.number)
	}
	c.count = len(crl.RevokedCertificateEntries)
	listed := make([]serialKey, 0, c.count)
	size := 0
	for _, e := range crl.RevokedCertificateEntries {
		size += len(e.Raw)
	}
	c.entries = make([]byte, 0, size)
	for _, e := range crl.RevokedCertificateEntries {
		c.entries = append(c.entries, e.Raw...)
		if key, ok := keyOf(e.SerialNumber); ok {
			listed = append(listed, key)
		}
	}
	return listed, nil
}

// canSignCRLs reports at the start what would make the first revocation fail.
func canSignCRLs(issuer *x509.Certificate) error {
	if issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return fmt.Errorf("%q may not sign CRLs (its key usage lacks cRLSign)", issuer.Subject)
	}
	if len(issuer.SubjectKeyId) == 0 {
		return fmt.Errorf("%q has no subject key identifier, which its CRLs must name", issuer.Subject)
	}
	return nil
}

// next signs a CRL with these entries and this number, and returns it with the foreign CRLs.
func (s signer) next(number *big.Int, entries []byte, count int, foreign []foreignCRL, now time.Time, validity time.Duration) (*crlChain, error) {
	now = now.UTC().Truncate(time.Second)
	c := &crlChain{
		number: number, thisUpdate: now.Add(-time.Second), nextUpdate: now.Add(validity),
		entries: entries, count: count,
	}
	der, err := s.newCRL(number, entries, c.thisUpdate, c.nextUpdate)
	if err != nil {
		return nil, err
	}
	c.encoded = pemfile.Encode(pemfile.CRL, der)
	return c.withForeign(foreign), nil
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
	return &changed
}

// eachEntry calls do with each entry in DER and its serial. ok is
// false if the serial is too long for a serialKey.
func eachEntry(entries []byte, do func(der []byte, key serialKey, ok bool)) error {
	for len(entries) > 0 {
		var entry, serial asn1.RawValue
		rest, err := asn1.Unmarshal(entries, &entry)
		if err == nil {
			_, err = asn1.Unmarshal(entry.Bytes, &serial)
		}
		if err != nil {
			return fmt.Errorf("read CRL entries: %w", err) // never happens: crypto/x509 has read them already
		}
		key, ok := keyOfBytes(serial.Bytes)
		do(entry.FullBytes, key, ok)
		entries = rest
	}
	return nil
}

func following(n *big.Int) *big.Int { return new(big.Int).Add(n, big.NewInt(1)) }
