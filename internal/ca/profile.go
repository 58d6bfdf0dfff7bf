package ca

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha1" // #nosec G505 -- for key identifiers
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// Backdate is the time between a certificate's NotBefore and its signing. Puppet Server
// does the same, for agents whose clocks are up to a day behind.
const Backdate = 24 * time.Hour

var (
	oidExtKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidServerAuth  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	oidNSComment   = asn1.ObjectIdentifier{2, 16, 840, 1, 113730, 1, 13}
)

// Leaf returns the template of a certificate for r, in Puppet Server's profile
// (create-agent-extensions in its certificate_authority.clj). It has a common name,
// the subject alternative names with the certname first, the Netscape
// comment, key identifiers, Puppet's extensions, and critical basic
// constraints, key usage and extended key usage.
//
// It differs from Puppet Server in three points. The authority key identifier has only the key
// identifier; Puppet Server 7.9 adds issuer and serial. An EC key
// has no key encipherment (RFC 8813 section 3). A certificate never
// outlives its CA, as RFC 5280 has verifiers refuse it then.
func Leaf(r Request, now time.Time, issuer *x509.Certificate) (*x509.Certificate, error) {
	notBefore, notAfter, err := Validity(r.TTL, now, issuer)
	if err != nil {
		return nil, err
	}
	serial, ok := r.Serial.Int()
	if !ok || serial.Sign() == 0 {
		return nil, fmt.Errorf("%q is no serial number", r.Serial)
	}
	subject, err := CommonName(string(r.Certname))
	if err != nil {
		return nil, err
	}
	keyID, err := KeyID(r.PublicKey())
	if err != nil {
		return nil, err
	}
	extra, err := leafExtensions(r)
	if err != nil {
		return nil, err
	}
	usage := x509.KeyUsageDigitalSignature
	if _, ok := r.PublicKey().(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		RawSubject:            subject,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		DNSNames:              append([]string{string(r.Certname)}, r.DNSAltNames...),
		SubjectKeyId:          keyID,
		KeyUsage:              usage,
		BasicConstraintsValid: true,
		ExtraExtensions:       extra,
	}, nil
}

// Validity returns NotBefore and NotAfter of a certificate that is issued now, in whole seconds
// like Puppet Server's. A TTL of zero means the default, but no later than the CA's end. Any other
// TTL that reaches beyond the CA's end is refused.
func Validity(ttl time.Duration, now time.Time, issuer *x509.Certificate) (notBefore, notAfter time.Time, err error) {
	now = now.UTC().Truncate(time.Second)
	if err := checkInForce(issuer.NotBefore, issuer.NotAfter, now); err != nil {
		return notBefore, notAfter, fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	}
	notAfter = now.Add(ttl)
	if ttl == 0 {
		notAfter = now.Add(DefaultTTL)
		if notAfter.After(issuer.NotAfter) {
			notAfter = issuer.NotAfter
		}
	}
	if notAfter.After(issuer.NotAfter) {
		return notBefore, notAfter, node.Invalid("ttl", "reaches to %s, beyond the CA's own end at %s",
			notAfter.Format(time.RFC3339), issuer.NotAfter.Format(time.RFC3339))
	}
	return now.Add(-Backdate), notAfter, nil
}

func leafExtensions(r Request) ([]pkix.Extension, error) {
	// crypto/x509 would not mark the extended key usage as critical.
	usages, err := asn1.Marshal([]asn1.ObjectIdentifier{oidServerAuth, oidClientAuth})
	if err != nil {
		return nil, fmt.Errorf("encode extended key usage: %w", err)
	}
	comment, err := NetscapeComment()
	if err != nil {
		return nil, err
	}
	exts := []pkix.Extension{comment, {Id: oidExtKeyUsage, Critical: true, Value: usages}}
	for _, e := range r.Extensions {
		ext, err := e.encode()
		if err != nil {
			return nil, err
		}
		exts = append(exts, ext)
	}
	return exts, nil
}

// CommonName encodes a distinguished name that is one common name, a UTF8String as in Puppet.
// crypto/x509 would choose a PrintableString. By RFC 5280's simple comparison, names of different
// types are different names.
func CommonName(cn string) ([]byte, error) {
	value, err := asn1.MarshalWithParams(cn, "utf8")
	if err != nil {
		return nil, fmt.Errorf("encode common name %q: %w", cn, err)
	}
	der, err := asn1.Marshal(pkix.RDNSequence{{{Type: oidCommonName, Value: asn1.RawValue{FullBytes: value}}}})
	if err != nil {
		return nil, fmt.Errorf("encode common name %q: %w", cn, err)
	}
	return der, nil
}

// KeyID returns a subject key identifier by method 1 of RFC 5280 section 4.2.1.2:
// a SHA-1, as in Puppet.
func KeyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("identify public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("identify public key: %w", err)
	}
	sum := sha1.Sum(spki.Key.Bytes) // #nosec G401 -- a key identifier, RFC 5280 section 4.2.1.2
	return sum[:], nil
}

// NetscapeComment returns the comment in every certificate of Puppet's CA and in
// the CA's own.
func NetscapeComment() (pkix.Extension, error) {
	der, err := asn1.MarshalWithParams("Puppet Server Internal Certificate", "ia5")
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encode Netscape comment: %w", err)
	}
	return pkix.Extension{Id: oidNSComment, Value: der}, nil
}
