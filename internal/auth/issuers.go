package auth

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/pemfile"
)

// issuers are the CAs that client certificates may come from, each with its CRL.
type issuers struct {
	options x509.VerifyOptions
	crls    map[string]crl // by issuerKey
}

// crl is one CA's list of revoked certificates.
type crl struct {
	number  string
	until   time.Time
	revoked pemfile.SerialSet
}

func issuerKey(ca *x509.Certificate) string {
	return string(ca.RawSubject) + "\x00" + string(ca.RawSubjectPublicKeyInfo)
}

// readCAs returns the certificates of a file of CAs.
func readCAs(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	cas, err := pemfile.Certificates(data)
	if err != nil {
		return nil, fmt.Errorf("ca: %s: %w", path, err)
	}
	return cas, nil
}

func readIssuers(caPath, crlPath string) (*issuers, error) {
	cas, err := readCAs(caPath)
	if err != nil {
		return nil, err
	}
	s := &issuers{crls: map[string]crl{}}
	s.options = x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, ca := range cas {
		// The topmost are what is trusted by itself; those below have a CRL of another to be on.
		if slices.ContainsFunc(cas, func(above *x509.Certificate) bool {
			return !bytes.Equal(ca.RawSubject, above.RawSubject) && bytes.Equal(ca.RawIssuer, above.RawSubject)
		}) {
			s.options.Intermediates.AddCert(ca)
		} else {
			s.options.Roots.AddCert(ca)
		}
	}
	if err := s.readCRLs(crlPath, cas); err != nil {
		return nil, fmt.Errorf("crl: %w", err)
	}
	return s, nil
}

// readCRLs reads a file of CRLs. Blocks of other types are skipped.
func (s *issuers) readCRLs(path string, cas []*x509.Certificate) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	found := false
	for block := range pemfile.Blocks(data) {
		if block.Type != pemfile.CRL {
			continue
		}
		found = true
		if err := s.addCRL(block, cas); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if !found {
		return fmt.Errorf("%s: holds no PEM block %s", path, pemfile.CRL)
	}
	return nil
}

// addCRL adds a CRL that one of the CAs has signed. The CRL of another CA is
// ignored: no certificate is checked against it.
func (s *issuers) addCRL(block *pem.Block, cas []*x509.Certificate) error {
	list, err := pemfile.ParseCRL(block)
	if err != nil {
		return err
	}
	if err := list.CheckWhole(); err != nil {
		return err
	}
	for _, ca := range cas {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) || list.CheckSignatureFrom(ca) != nil {
			continue
		}
		if _, again := s.crls[issuerKey(ca)]; again {
			return fmt.Errorf("there are two lists of %q", list.Issuer())
		}
		c := crl{number: pemfile.NumberOf(list).String(), until: list.NextUpdate}
		c.revoked, _ = list.Entries.Serials()
		s.crls[issuerKey(ca)] = c
	}
	return nil
}

// verify returns the chains from a client's certificate to a trusted CA: one or more, or an error.
func (s *issuers) verify(leaf *x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	if leaf.IsCA {
		return nil, errors.New("it is a CA's, not a client's")
	}
	options := s.options
	options.CurrentTime = now
	return leaf.Verify(options)
}

// refused looks a certificate up in the CRL of its issuer.
func (s *issuers) refused(cert, issuer *x509.Certificate, now time.Time) error {
	list, found := s.crls[issuerKey(issuer)]
	switch {
	case !found:
		return fmt.Errorf("there is no CRL of %q", issuer.Subject)
	case !list.until.After(now): // also where it has no nextUpdate, which RFC 5280 wants
		return fmt.Errorf("the CRL of %q expired at %s", issuer.Subject, list.until.UTC().Format(time.RFC3339))
	case list.revoked.Has(cert.SerialNumber):
		return fmt.Errorf("certificate %X of %q is revoked by CRL %s", cert.SerialNumber, cert.Subject, list.number)
	default:
		return nil
	}
}
