package directory

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

const crlType = "X509 CRL"

var oidCRLReason = asn1.ObjectIdentifier{2, 5, 29, 21}

// crlChain is ca_crl.pem in memory: the CA's own CRL, taken apart so that the
// next one need not parse it, and the other issuers' as they are. All but
// listed stays as it was made.
type crlChain struct {
	number  *big.Int
	entries []x509.RevocationListEntry
	foreign []byte // PEM of the other issuers' CRLs
	pem     []byte // the whole file

	listed map[node.Serial]bool // the serials of entries; shared with the next chain
}

// parseCRLs reads a file like ca_crl.pem of the CA whose certificates are chain.
func parseCRLs(data []byte, chain []*x509.Certificate) (*crlChain, error) {
	c := &crlChain{pem: data}
	issuers := make(map[string]bool)
	rest := data
	for block, next := pem.Decode(rest); block != nil; block, next = pem.Decode(rest) {
		encoded := rest[bytes.Index(rest, []byte("-----BEGIN")) : len(rest)-len(next)]
		rest = next
		if block.Type != crlType {
			return nil, fmt.Errorf("holds a PEM block %q, want only %s", block.Type, crlType)
		}
		crl, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse CRL: %w", err)
		}
		issuers[string(crl.RawIssuer)] = true
		if c.number == nil && bytes.Equal(crl.RawIssuer, chain[0].RawSubject) {
			if err := c.adopt(crl, chain[0]); err != nil {
				return nil, err
			}
			continue
		}
		c.foreign = append(c.foreign, encoded...)
	}
	for _, cert := range chain {
		if !issuers[string(cert.RawSubject)] {
			return nil, fmt.Errorf("holds no CRL of %q; agents check every certificate of the chain"+
				" (certificate_revocation = chain) and would refuse it", cert.Subject)
		}
	}
	return c, nil
}

// adopt takes the CA's own CRL apart.
func (c *crlChain) adopt(crl *x509.RevocationList, issuer *x509.Certificate) error {
	if err := crl.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("the CRL of %q is not signed by its key: %w", issuer.Subject, err)
	}
	for _, e := range crl.Extensions {
		// A delta CRL or one for a part of the certificates says so in a
		// critical extension (RFC 5280 section 5.2); the next one would not.
		if e.Critical {
			return fmt.Errorf("the CRL of %q has the critical extension %s, which espm can't keep", issuer.Subject, e.Id)
		}
	}
	c.number = crl.Number
	if c.number == nil {
		c.number = new(big.Int) // RFC 5280 section 5.2.3 demands one, but not every tool writes it
	}
	c.entries = slices.Clone(crl.RevokedCertificateEntries)
	c.listed = make(map[node.Serial]bool, len(c.entries))
	for i := range c.entries {
		e := &c.entries[i]
		c.listed[node.SerialOf(e.SerialNumber)] = true
		// x509 writes the reason from ReasonCode, and nothing else of what it read.
		e.ExtraExtensions = slices.DeleteFunc(slices.Clone(e.Extensions), func(x pkix.Extension) bool { return x.Id.Equal(oidCRLReason) })
	}
	return nil
}

// canSignCRLs checks at the start what would else come up at the first revocation.
func canSignCRLs(issuer *x509.Certificate) error {
	if issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return fmt.Errorf("%q may not sign CRLs (its key usage lacks cRLSign)", issuer.Subject)
	}
	if len(issuer.SubjectKeyId) == 0 {
		return fmt.Errorf("%q has no subject key identifier, which its CRLs must name", issuer.Subject)
	}
	return nil
}

// signer signs CRLs for a CA.
type signer struct {
	issuer   *x509.Certificate
	key      crypto.Signer
	validity time.Duration
}

// sign makes the chain that follows c, with further serials revoked.
func (s signer) sign(c *crlChain, added []ca.Target, now time.Time) (*crlChain, error) {
	now = now.UTC().Truncate(time.Second)
	// The shared array beyond len(c.entries) belongs to whoever revokes.
	entries := c.entries
	for _, t := range added {
		n, ok := t.Serial.Int()
		if !ok {
			return nil, fmt.Errorf("%q is no serial number", t.Serial)
		}
		code, ok := t.Reason.Code()
		if !ok {
			return nil, fmt.Errorf("%q is no reason", t.Reason)
		}
		// x509 leaves out a reason of 0, unspecified, as RFC 5280 section 5.3.1 has it.
		entries = append(entries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: now, ReasonCode: code})
	}
	number := new(big.Int).Add(c.number, big.NewInt(1))
	der, err := newCRL(s, number, entries, now.Add(-time.Second), now.Add(s.validity))
	if err != nil {
		return nil, err
	}
	own := pem.EncodeToMemory(&pem.Block{Type: crlType, Bytes: der})
	return &crlChain{
		number:  number,
		entries: entries,
		foreign: c.foreign,
		pem:     append(own, c.foreign...),
		listed:  c.listed,
	}, nil
}

func newCRL(s signer, number *big.Int, entries []x509.RevocationListEntry, thisUpdate, nextUpdate time.Time) ([]byte, error) {
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: number, RevokedCertificateEntries: entries, ThisUpdate: thisUpdate, NextUpdate: nextUpdate,
	}, s.issuer, s.key)
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	return der, nil
}

// without returns the targets that c does not list, once each.
func (c *crlChain) without(targets []ca.Target) []ca.Target {
	var added []ca.Target
	seen := make(map[node.Serial]bool, len(targets))
	for _, t := range targets {
		if !c.listed[t.Serial] && !seen[t.Serial] {
			seen[t.Serial] = true
			added = append(added, t)
		}
	}
	return added
}
