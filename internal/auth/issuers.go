package auth

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/pemfile"
)

// issuers are the CAs whose client certificates are accepted, each with its CRL.
type issuers struct {
	options x509.VerifyOptions
	crls    map[string]crl  // by issuerKey
	above   map[string]link // by issuerKey: the CAs that are trusted although another CA has issued them
}

// crl is the list of revoked certificates of one CA.
type crl struct {
	number  string
	until   time.Time
	revoked func(serial *big.Int) bool
}

// link is the certificate of a CA and the certificate of its issuer.
type link struct{ cert, issuer *pemfile.RawCertificate }

func issuerKey(subject, publicKey []byte) string { return string(subject) + "\x00" + string(publicKey) }

func rawKey(ca *pemfile.RawCertificate) string {
	return issuerKey(ca.RawSubject, ca.RawSubjectPublicKeyInfo)
}

func readCAs(path string) ([]*pemfile.RawCertificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	cas, err := pemfile.RawCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("ca: %s: %w", path, err)
	}
	return cas, nil
}

func readIssuers(files Files) (*issuers, error) {
	cas, err := readCAs(files.CA)
	if err != nil {
		return nil, err
	}
	s := &issuers{crls: map[string]crl{}, above: map[string]link{}}
	s.options = x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, ca := range cas {
		s.addCA(ca, cas)
	}
	if err := s.readCRLs(files, cas); err != nil {
		return nil, fmt.Errorf("crl: %w", err)
	}
	return s, nil
}

// addCA adds one CA of a file. A CA without an issuer in the file is trusted. Any other CA must not be on the CRL of its
// issuer. If crypto/x509 refuses the issuer's key or hash, the CA is trusted too, and refused checks the CRL.
func (s *issuers) addCA(ca *pemfile.RawCertificate, all []*pemfile.RawCertificate) {
	i := slices.IndexFunc(all, func(above *pemfile.RawCertificate) bool {
		return !bytes.Equal(ca.RawSubject, above.RawSubject) && bytes.Equal(ca.RawIssuer, above.RawSubject)
	})
	trusted := i < 0 || !verifiable(ca, all[i])
	if trusted && i >= 0 {
		s.above[rawKey(ca)] = link{ca, all[i]}
	}
	switch {
	case ca.X509 == nil:
	case trusted:
		s.options.Roots.AddCert(ca.X509)
	default:
		s.options.Intermediates.AddCert(ca.X509)
	}
}

// verifiable reports whether crypto/x509 can decide if issuer has issued a CA's certificate.
func verifiable(ca, issuer *pemfile.RawCertificate) bool {
	if ca.X509 == nil || issuer.X509 == nil {
		return false
	}
	if ca.X509.CheckSignatureFrom(issuer.X509) == nil {
		return true
	}
	issued := pemfile.CheckIssued(ca.Raw, issuer.X509)
	return issued != nil && !errors.Is(issued, pemfile.ErrUnverifiable)
}

// readCRLs reads a file of CRLs, and skips PEM blocks of other types.
func (s *issuers) readCRLs(files Files, cas []*pemfile.RawCertificate) error {
	data, found := s.kept(files, cas)
	if !found {
		var err error
		if data, err = os.ReadFile(files.CRL); err != nil {
			return err
		}
	}
	for block := range pemfile.Blocks(data) {
		if block.Type != pemfile.CRL {
			continue
		}
		found = true
		if err := s.addCRL(block, cas); err != nil {
			return fmt.Errorf("%s: %w", files.CRL, err)
		}
	}
	if !found {
		return fmt.Errorf("%s: holds no PEM block %s", files.CRL, pemfile.CRL)
	}
	return nil
}

// kept adds the CRL that espm has in memory if the file has the same content, and returns the rest of the file.
func (s *issuers) kept(files Files, cas []*pemfile.RawCertificate) (rest []byte, found bool) {
	if files.Kept == nil {
		return nil, false
	}
	k := files.Kept()
	if k == nil || !pemfile.HasContent(files.CRL, k.PEM) {
		return nil, false
	}
	key := issuerKey(k.Issuer.RawSubject, k.Issuer.RawSubjectPublicKeyInfo)
	if slices.ContainsFunc(cas, func(ca *pemfile.RawCertificate) bool { return rawKey(ca) == key }) {
		s.crls[key] = crl{number: k.Number, until: k.NextUpdate, revoked: k.Lists}
	}
	return k.Rest, true
}

// addCRL adds a CRL that one of the CAs has signed. The CRL of any other CA is ignored: no certificate is
// checked against such a CRL.
func (s *issuers) addCRL(block *pem.Block, cas []*pemfile.RawCertificate) error {
	list, err := pemfile.ParseCRL(block)
	if err != nil {
		return err
	}
	for _, ca := range cas {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) || !mayHaveSigned(ca, list) {
			continue
		}
		if err := list.CheckWhole(); err != nil {
			return err
		}
		if _, again := s.crls[rawKey(ca)]; again {
			return fmt.Errorf("there are two lists of %q", list.Issuer())
		}
		revoked, _ := list.Entries.Serials()
		s.crls[rawKey(ca)] = crl{number: pemfile.NumberOf(list).String(), until: list.NextUpdate, revoked: revoked.Has}
	}
	return nil
}

// mayHaveSigned checks the signature of a CRL. A signature of a kind that espm can't verify is accepted: an
// additional CRL can only refuse more certificates.
func mayHaveSigned(ca *pemfile.RawCertificate, list *pemfile.RevocationList) bool {
	if ca.X509 == nil {
		return true
	}
	err := list.CheckSignatureFrom(ca.X509)
	return err == nil || errors.Is(err, pemfile.ErrUnverifiable)
}

// verify returns at least one chain from a client's certificate to a trusted CA, or an error.
func (s *issuers) verify(leaf *x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	if leaf.IsCA {
		return nil, errors.New("it is a CA's, not a client's")
	}
	options := s.options
	options.CurrentTime = now
	return leaf.Verify(options)
}

// refused returns an error if the CRL of the issuer refuses a certificate. A verified chain may end at a CA of s.above,
// because crypto/x509 can't verify with the issuer of that CA. For such a CA, refused walks up through s.above and
// checks each CA against the CRL of its issuer.
func (s *issuers) refused(cert, issuer *x509.Certificate, now time.Time) error {
	key := issuerKey(issuer.RawSubject, issuer.RawSubjectPublicKeyInfo)
	err := s.listed(cert.SerialNumber, cert.Subject.String(), key, issuer.Subject.String(), now)
	for range s.above { // at most one step a link: the links may form a cycle
		up, found := s.above[key]
		if err != nil || !found {
			break
		}
		key = rawKey(up.issuer)
		err = s.listed(up.cert.SerialNumber, up.cert.Subject(), key, up.issuer.Subject(), now)
	}
	return err
}

// listed returns an error if one issuer's CRL lists a serial, has expired or is missing.
func (s *issuers) listed(serial *big.Int, subject, issuerKey, issuer string, now time.Time) error {
	list, found := s.crls[issuerKey]
	switch {
	case !found:
		return fmt.Errorf("there is no CRL of %q", issuer)
	case !list.until.After(now): // a CRL without nextUpdate counts as expired: RFC 5280 requires the field
		return fmt.Errorf("the CRL of %q expired at %s", issuer, list.until.UTC().Format(time.RFC3339))
	case list.revoked(serial):
		return fmt.Errorf("certificate %X of %q is revoked by CRL %s", serial, subject, list.number)
	default:
		return nil
	}
}
