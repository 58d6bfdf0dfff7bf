// Package pemfile reads and writes certificates and CRLs in PEM (RFC 7468),
// and detects whether a file has changed since it was last read.
package pemfile

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"math/big"
)

// Types of PEM blocks.
const (
	Certificate = "CERTIFICATE"
	CRL         = "X509 CRL"
	Request     = "CERTIFICATE REQUEST"
)

// lineBytes are the bytes of a line in PEM, which has 64 characters.
const lineBytes = 48

// Encode returns one PEM block. It needs a third of the time of encoding/pem. With a large CRL, that would be
// the greatest part of a revocation's time.
func Encode(kind string, der []byte) []byte {
	begin, end := "-----BEGIN "+kind+"-----\n", "-----END "+kind+"-----\n"
	lines := (len(der) + lineBytes - 1) / lineBytes
	size := len(begin) + base64.StdEncoding.EncodedLen(len(der)) + lines + len(end)
	out := append(make([]byte, 0, size), begin...)
	for len(der) > 0 {
		n := min(len(der), lineBytes)
		out = append(base64.StdEncoding.AppendEncode(out, der[:n]), '\n')
		der = der[n:]
	}
	return append(out, end...)
}

// Blocks yields the PEM blocks in data, in order. Text around them is skipped.
func Blocks(data []byte) iter.Seq[*pem.Block] {
	return func(yield func(*pem.Block) bool) {
		for block, rest := pem.Decode(data); block != nil && yield(block); block, rest = pem.Decode(rest) {
		}
	}
}

// Certificates returns all certificates in data. Blocks of other types are skipped.
// A certificate that can't be read, and data without one, are errors.
func Certificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block := range Blocks(data) {
		if block.Type != Certificate {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errNone
	}
	return certs, nil
}

// First returns the first certificate in data and ignores the rest. In a chain that is the leaf,
// or the signing CA.
func First(data []byte) (*x509.Certificate, error) {
	for block := range Blocks(data) {
		if block.Type == Certificate {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errNone
}

// ParseCRL reads one block of a file of CRLs. The caller must check
// the signature (CheckSignatureFrom) and that the CRL is complete (CheckWhole).
func ParseCRL(block *pem.Block) (*x509.RevocationList, error) {
	if block.Type != CRL {
		return nil, WrongType(block, CRL)
	}
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse CRL: %w", err)
	}
	return crl, nil
}

// CheckWhole refuses a CRL that may not list all revocations of its issuer.
// A delta CRL, and one for a part of the certificates, says so in a critical
// extension (RFC 5280 section 5.2).
func CheckWhole(crl *x509.RevocationList) error {
	for _, e := range crl.Extensions {
		if e.Critical {
			return fmt.Errorf("the CRL of %q has the critical extension %s, which espm does not know", crl.Issuer, e.Id)
		}
	}
	return nil
}

// NumberOf returns the number of a CRL, and 0 for a CRL without one. RFC 5280
// section 5.2.3 demands a number, but not every tool writes it.
func NumberOf(crl *x509.RevocationList) *big.Int {
	if crl.Number == nil {
		return new(big.Int)
	}
	return crl.Number
}

var errNone = errors.New("holds no certificate in PEM")

// WrongType is the error for a block that does not have the wanted type.
func WrongType(block *pem.Block, want string) error {
	return fmt.Errorf("holds a PEM block %.40q, want only %s", block.Type, want)
}
