package directory

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/secretfile"
)

// loadKey reads the CA's private key, in any form that OpenSSL writes.
func loadKey(path string) (*ca.Key, error) {
	data, err := secretfile.Read("CA key", path)
	if err != nil {
		return nil, err
	}
	for block := range pemfile.Blocks(data) {
		if block.Type == "EC PARAMETERS" { // `openssl ecparam -genkey` puts it before the key
			continue
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, fmt.Errorf("CA key %s is encrypted; espm needs it without a passphrase", path)
		}
		key, err := parseKey(block)
		if err != nil {
			return nil, fmt.Errorf("CA key %s: %w", path, err)
		}
		return ca.NewKey(key), nil
	}
	return nil, fmt.Errorf("CA key %s holds no PEM block", path)
}

// parseKey does not return the parser's errors, as they may contain a part of the key.
func parseKey(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("holds a PEM block %.40q, want a private key", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("the %s in it can't be read", block.Type)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return key, nil
	case *ecdsa.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("is a %T, want RSA or EC", key)
}

// loadChain reads ca_crt.pem: the signing CA's certificate, then the issuer of each up to
// the root. It returns the chain up to the root, and the certificates of the whole file as PEM,
// even those after the root. Of the chain, crypto/x509 need only read the signing CA's certificate.
func loadChain(path string, pub crypto.PublicKey) ([]*pemfile.RawCertificate, []byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read CA certificate: %w", err)
	}
	certs, clean, err := parseCertificates(data)
	if err != nil {
		return nil, nil, fmt.Errorf("CA certificate %s: %w", path, err)
	}
	chain, err := checkChain(certs, pub)
	if err != nil {
		return nil, nil, fmt.Errorf("CA certificate %s: %w", path, err)
	}
	return chain, clean, nil
}

// parseCertificates reads a file that has only certificates. clean is the file without
// the text around them.
func parseCertificates(data []byte) (certs []*pemfile.RawCertificate, clean []byte, err error) {
	for block := range pemfile.Blocks(data) {
		if block.Type != pemfile.Certificate {
			return nil, nil, pemfile.WrongType(block, pemfile.Certificate)
		}
	}
	certs, err = pemfile.RawCertificates(data)
	for _, cert := range certs {
		clean = append(clean, pemfile.Encode(pemfile.Certificate, cert.Raw)...)
	}
	return certs, clean, err
}

func checkChain(certs []*pemfile.RawCertificate, pub crypto.PublicKey) ([]*pemfile.RawCertificate, error) {
	for i, cert := range certs {
		if cert.X509 == nil || !samePublicKey(cert.X509.PublicKey, pub) {
			continue
		}
		if i > 0 {
			return nil, fmt.Errorf("the CA's key belongs to certificate %d, %q; it must come first", i+1, cert.Subject())
		}
		return pathToRoot(certs)
	}
	if first := certs[0]; first.X509 == nil {
		return nil, fmt.Errorf("the certificate of %q can't be read: %w", first.Subject(), first.Unreadable)
	}
	return nil, fmt.Errorf("the CA's key does not belong to %q", certs[0].Subject())
}

func pathToRoot(certs []*pemfile.RawCertificate) ([]*pemfile.RawCertificate, error) {
	for i, cert := range certs {
		if c := cert.X509; c != nil && (!c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0) {
			return nil, fmt.Errorf("%q is no CA", cert.Subject())
		}
		// The signature of a root is not checked: it proves nothing (RFC
		// 5280 section 6.1), and on an old site it may be SHA-1.
		if bytes.Equal(cert.RawIssuer, cert.RawSubject) {
			return certs[:i+1], nil
		}
		if i+1 == len(certs) {
			return nil, fmt.Errorf("the chain lacks %q, which issued %q", cert.Issuer(), cert.Subject())
		}
		if err := checkIssued(cert, certs[i+1]); err != nil {
			return nil, fmt.Errorf("certificate %d, %q, was not issued by the one that follows it, %q: %w",
				i+1, cert.Subject(), certs[i+1].Subject(), err)
		}
	}
	panic("unreachable: every round returns or has a next")
}

// checkIssued checks a signature, and where Go has no such signatures or keys, the name.
func checkIssued(cert, issuer *pemfile.RawCertificate) error {
	err := error(nil)
	if issuer.X509 != nil {
		err = pemfile.CheckIssued(cert.Raw, issuer.X509)
	}
	if issuer.X509 != nil && !errors.Is(err, pemfile.ErrUnverifiable) {
		return err
	}
	if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("it names %q", cert.Issuer())
	}
	return nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
