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
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
)

var (
	oidCRLReason      = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidCRLNumber      = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
)

// signer signs CRLs for a CA.
type signer struct {
	issuer *x509.Certificate
	key    crypto.Signer
}

// newCRL returns a CRL in DER, the same as x509.CreateRevocationList would return, in three
// parts. The second part is entries, in DER, one after the other: they are neither encoded again nor copied.
func (s signer) newCRL(number *big.Int, entries []byte, thisUpdate, nextUpdate time.Time) ([][]byte, error) {
	algorithm, hash, err := signatureAlgorithm(s.key.Public())
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	extensions, err := s.extensions(number)
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	before, errBefore := marshalAll(1, algorithm, asn1.RawValue{FullBytes: s.issuer.RawSubject}, thisUpdate.UTC(), nextUpdate.UTC())
	after, errAfter := asn1.MarshalWithParams(extensions, "tag:0,explicit")
	identifier, errIdentifier := asn1.Marshal(algorithm)
	if err := errors.Join(errBefore, errAfter, errIdentifier); err != nil {
		return nil, fmt.Errorf("encode CRL: %w", err)
	}
	if len(entries) > 0 { // RFC 5280 section 5.1.2.6: an empty list is absent
		before = append(before, sequence(len(entries))...)
	}
	before = slices.Concat(sequence(len(before)+len(entries)+len(after)), before)
	digest := hash.New()
	for _, part := range [][]byte{before, entries, after} {
		digest.Write(part)
	}
	signature, err := s.key.Sign(rand.Reader, digest.Sum(nil), hash)
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	bits, err := asn1.Marshal(asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)})
	if err != nil {
		return nil, fmt.Errorf("encode CRL: %w", err)
	}
	after = slices.Concat(after, identifier, bits)
	return [][]byte{slices.Concat(sequence(len(before)+len(entries)+len(after)), before), entries, after}, nil
}

// sequence returns what stands before the contents of a SEQUENCE of that length in DER.
func sequence(length int) []byte {
	if length < 0x80 {
		return []byte{0x30, byte(length)} // #nosec G115 -- below 0x80
	}
	digits := big.NewInt(int64(length)).Bytes()
	return append([]byte{0x30, 0x80 | byte(len(digits))}, digits...) // #nosec G115 -- at most 8
}

// marshalAll encodes values one after the other.
func marshalAll(values ...any) (out []byte, err error) {
	for _, v := range values {
		der, err := asn1.Marshal(v)
		if err != nil {
			return nil, err
		}
		out = append(out, der...)
	}
	return out, nil
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

// newEntry returns the entry of a revocation, in DER.
func newEntry(t ca.Target, when time.Time) ([]byte, error) {
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
	return der, nil
}
