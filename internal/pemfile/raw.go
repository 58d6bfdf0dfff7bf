package pemfile

import (
	"crypto/x509"
	"errors"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// RawCertificate is a certificate as DER. The fields are available even if package x509 refuses the
// certificate: for keys on brainpool curves and secp256k1, negative serials and malformed extensions.
type RawCertificate struct {
	Raw                     []byte
	RawSubject, RawIssuer   []byte // names, in DER
	RawSubjectPublicKeyInfo []byte
	SerialNumber            *big.Int  // may be negative
	NotBefore, NotAfter     time.Time // zero: malformed

	X509       *x509.Certificate // nil: package x509 refuses it
	Unreadable error             // the error of package x509
}

// Subject returns the subject's name as text.
func (c *RawCertificate) Subject() string { return nameOf(c.RawSubject) }

// Issuer returns the issuer's name as text.
func (c *RawCertificate) Issuer() string { return nameOf(c.RawIssuer) }

// RawCertificates returns all certificates in data, even if package x509 refuses them. RawCertificates
// skips blocks of other types. A block that is no certificate in DER, and data without a certificate, are
// errors.
func RawCertificates(data []byte) ([]*RawCertificate, error) {
	return certificates(data, parseRaw)
}

func parseRaw(der []byte) (*RawCertificate, error) {
	c := &RawCertificate{Raw: der, SerialNumber: new(big.Int)}
	c.X509, c.Unreadable = x509.ParseCertificate(der)
	input := cryptobyte.String(der)
	var whole, tbs, version, subject, issuer, key, validity, skipped cryptobyte.String
	if !input.ReadASN1(&whole, cbasn1.SEQUENCE) || !input.Empty() || !whole.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!tbs.ReadOptionalASN1(&version, nil, cbasn1.Tag(0).Constructed().ContextSpecific()) ||
		!tbs.ReadASN1Element(&skipped, cbasn1.INTEGER) || !readSerial(skipped, c.SerialNumber) ||
		!tbs.SkipASN1(cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1(&validity, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&subject, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&key, cbasn1.SEQUENCE) {
		return nil, errors.Join(errors.New("it is no certificate in DER"), c.Unreadable)
	}
	c.RawIssuer, c.RawSubject, c.RawSubjectPublicKeyInfo = issuer, subject, key
	if isTime(validity) {
		c.NotBefore = skipTime(&validity)
	}
	if isTime(validity) {
		c.NotAfter = skipTime(&validity)
	}
	return c, nil
}

// readSerial parses an INTEGER, even if the encoding is not minimal.
func readSerial(der cryptobyte.String, into *big.Int) bool {
	var contents cryptobyte.String
	if !der.ReadASN1(&contents, cbasn1.INTEGER) || contents.Empty() {
		return false
	}
	into.SetBytes(contents)
	if contents[0]&0x80 != 0 { // two's complement
		into.Sub(into, new(big.Int).Lsh(big.NewInt(1), uint(8*len(contents))))
	}
	return true
}
