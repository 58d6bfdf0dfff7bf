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
	revoked map[string]bool // by the serial number's bytes
}

func issuerKey(ca *x509.Certificate) string {
	return string(ca.RawSubject) + "\x00" + string(ca.RawSubjectPublicKeyInfo)
}

// readCAs returns the certificates of a file of CAs.
func readCAs(path string) ([]*x509.Certificate, error) {
	blocks, err := readBlocks(path, "CERTIFICATE")
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	var cas []*x509.Certificate
	for _, der := range blocks {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("ca: %s: %w", path, err)
		}
		cas = append(cas, ca)
	}
	return cas, nil
}

func readBlocks(path, kind string) ([][]byte, error) {
	rest, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind {
			all = append(all, block.Bytes)
		}
	}
	if all == nil {
		return nil, fmt.Errorf("%s: holds no PEM block %s", path, kind)
	}
	return all, nil
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
	blocks, err := readBlocks(crlPath, "X509 CRL")
	if err != nil {
		return nil, fmt.Errorf("crl: %w", err)
	}
	for _, der := range blocks {
		if err := s.addCRL(der, cas); err != nil {
			return nil, fmt.Errorf("crl: %s: %w", crlPath, err)
		}
	}
	return s, nil
}

// addCRL takes a list whose signature is one of the CAs'. The list of a CA
// that is not asked for is no harm.
func (s *issuers) addCRL(der []byte, cas []*x509.Certificate) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	for _, e := range list.Extensions {
		if e.Critical { // such as of a list of a part of the certificates (RFC 5280 section 5.2)
			return fmt.Errorf("the list of %q has the critical extension %v, which espm does not know", list.Issuer, e.Id)
		}
	}
	for _, ca := range cas {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) || list.CheckSignatureFrom(ca) != nil {
			continue
		}
		if _, again := s.crls[issuerKey(ca)]; again {
			return fmt.Errorf("there are two lists of %q", list.Issuer)
		}
		c := crl{until: list.NextUpdate, revoked: make(map[string]bool, len(list.RevokedCertificateEntries))}
		if list.Number != nil {
			c.number = list.Number.String()
		}
		for _, entry := range list.RevokedCertificateEntries {
			c.revoked[string(entry.SerialNumber.Bytes())] = true
		}
		s.crls[issuerKey(ca)] = c
	}
	return nil
}

// check verifies a certificate and looks each of its chain up in the CRL of
// the CA above. With several chains one good one is enough.
func (s *issuers) check(leaf *x509.Certificate, now time.Time) error {
	if leaf.IsCA {
		return errors.New("it is a CA's, not a client's")
	}
	options := s.options
	options.CurrentTime = now
	chains, err := leaf.Verify(options)
	if err != nil {
		return err
	}
	var errs []error
	for _, chain := range chains {
		err := s.checkRevoked(chain, now)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *issuers) checkRevoked(chain []*x509.Certificate, now time.Time) error {
	for i, cert := range chain[:len(chain)-1] {
		list, found := s.crls[issuerKey(chain[i+1])]
		switch {
		case !found:
			return fmt.Errorf("there is no CRL of %q", chain[i+1].Subject)
		case !list.until.After(now): // also where it has no nextUpdate, which RFC 5280 wants
			return fmt.Errorf("the CRL of %q expired at %s", chain[i+1].Subject, list.until.UTC().Format(time.RFC3339))
		case list.revoked[string(cert.SerialNumber.Bytes())]:
			return fmt.Errorf("certificate %X of %q is revoked by CRL %s", cert.SerialNumber, cert.Subject, list.number)
		}
	}
	return nil
}
