package directory

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // linked in for crypto.Hash
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"github.com/espm-project/espm/internal/ca"
)

var (
	oidCRLReason      = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidCRLNumber      = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
)

// certificateList and tbsCertList are defined in RFC 5280 section 5.1. The
// entries are encoded already. x509.CreateRevocationList encodes each again, which takes most
// of its time.
type certificateList struct {
	TBS       asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

type tbsCertList struct {
	Version    int
	Algorithm  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    asn1.RawValue    `asn1:"optional"`
	Extensions []pkix.Extension `asn1:"tag:0,explicit"`
}

// signer signs CRLs for a CA.
type signer struct {
	issuer *x509.Certificate
	key    crypto.Signer
}

// newCRL returns a CRL in DER, the same as x509.CreateRevocationList would
// return. entries are in DER, one after the other.
func (s signer) newCRL(number *big.Int, entries []byte, thisUpdate, nextUpdate time.Time) ([]byte, error) {
	algorithm, hash, err := signatureAlgorithm(s.key.Public())
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	extensions, err := s.extensions(number)
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	tbs := tbsCertList{
		Version: 1, Algorithm: algorithm, Issuer: asn1.RawValue{FullBytes: s.issuer.RawSubject},
		ThisUpdate: thisUpdate.UTC(), NextUpdate: nextUpdate.UTC(), Extensions: extensions,
	}
	if len(entries) > 0 { // RFC 5280 section 5.1.2.6: an empty list is absent
		tbs.Entries = asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: entries}
	}
	signed, err := asn1.Marshal(tbs)
	if err != nil {
		return nil, fmt.Errorf("encode CRL: %w", err)
	}
	digest := hash.New()
	digest.Write(signed)
	signature, err := s.key.Sign(rand.Reader, digest.Sum(nil), hash)
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	der, err := asn1.Marshal(certificateList{
		asn1.RawValue{FullBytes: signed}, algorithm, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
	if err != nil {
		return nil, fmt.Errorf("encode CRL: %w", err)
	}
	return der, nil
}

func (s signer) extensions(number *big.Int) ([]pkix.Extension, error) {
	keyID, err := asn1.Marshal(struct { // RFC 5280 section 4.2.1.1
		ID []byte `asn1:"optional,tag:0"`
	}{s.issuer.SubjectKeyId})
	if err != nil {
		return nil, err
	}
	encoded, err := asn1.Marshal(number)
	if err != nil {
		return nil, err
	}
	return []pkix.Extension{{Id: oidAuthorityKeyID, Value: keyID}, {Id: oidCRLNumber, Value: encoded}}, nil
}

// signatureAlgorithm returns the algorithm that crypto/x509 would choose for a key.
func signatureAlgorithm(pub crypto.PublicKey) (pkix.AlgorithmIdentifier, crypto.Hash, error) {
	switch pub := pub.(type) {
	case *rsa.PublicKey: // sha256WithRSAEncryption, RFC 4055 section 5
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}, crypto.SHA256, nil
	case *ecdsa.PublicKey: // ecdsa-with-SHA2, RFC 5758 section 3.2
		ecdsaWith := asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3}
		switch pub.Curve {
		case elliptic.P224(), elliptic.P256():
			return pkix.AlgorithmIdentifier{Algorithm: append(ecdsaWith, 2)}, crypto.SHA256, nil
		case elliptic.P384():
			return pkix.AlgorithmIdentifier{Algorithm: append(ecdsaWith, 3)}, crypto.SHA384, nil
		case elliptic.P521():
			return pkix.AlgorithmIdentifier{Algorithm: append(ecdsaWith, 4)}, crypto.SHA512, nil
		}
	}
	return pkix.AlgorithmIdentifier{}, 0, fmt.Errorf("a %T can't sign", pub)
}

// appendEntry adds the entry of a revocation, in DER.
func appendEntry(entries []byte, t ca.Target, when time.Time) ([]byte, error) {
	serial, ok := t.Serial.Int()
	if !ok {
		return nil, fmt.Errorf("%q is no serial number", t.Serial)
	}
	code, ok := t.Reason.Code()
	if !ok {
		return nil, fmt.Errorf("%q is no reason", t.Reason)
	}
	e := pkix.RevokedCertificate{SerialNumber: serial, RevocationTime: when.UTC()}
	if code != 0 { // RFC 5280 section 5.3.1: unspecified is left out
		value, err := asn1.Marshal(asn1.Enumerated(code))
		if err != nil {
			return nil, fmt.Errorf("encode reason: %w", err)
		}
		e.Extensions = []pkix.Extension{{Id: oidCRLReason, Value: value}}
	}
	der, err := asn1.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode CRL entry: %w", err)
	}
	return append(entries, der...), nil
}
