package pemfile

import (
	"crypto"
	"crypto/ecdsa"
	_ "crypto/md5" // #nosec G501 -- old CAs signed with it
	"crypto/rsa"
	_ "crypto/sha1" // #nosec G505 -- old CAs signed with it
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// ErrUnverifiable marks a signature by an algorithm or a key that espm can't verify. The signature may be
// valid.
var ErrUnverifiable = errors.New("the signature is of a kind that espm can't verify")

// scheme is a signature algorithm.
type scheme struct {
	hash     crypto.Hash
	rsa, pss bool // else ECDSA
}

var (
	oidPSS  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	oidMGF1 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}

	schemes = map[string]scheme{
		"1.2.840.113549.1.1.4":  {hash: crypto.MD5, rsa: true},
		"1.2.840.113549.1.1.5":  {hash: crypto.SHA1, rsa: true},
		"1.2.840.113549.1.1.14": {hash: crypto.SHA224, rsa: true},
		"1.2.840.113549.1.1.11": {hash: crypto.SHA256, rsa: true},
		"1.2.840.113549.1.1.12": {hash: crypto.SHA384, rsa: true},
		"1.2.840.113549.1.1.13": {hash: crypto.SHA512, rsa: true},
		"1.2.840.10045.4.1":     {hash: crypto.SHA1},
		"1.2.840.10045.4.3.1":   {hash: crypto.SHA224},
		"1.2.840.10045.4.3.2":   {hash: crypto.SHA256},
		"1.2.840.10045.4.3.3":   {hash: crypto.SHA384},
		"1.2.840.10045.4.3.4":   {hash: crypto.SHA512},
	}
	hashes = map[string]crypto.Hash{
		"1.3.14.3.2.26":          crypto.SHA1,
		"2.16.840.1.101.3.4.2.4": crypto.SHA224,
		"2.16.840.1.101.3.4.2.1": crypto.SHA256,
		"2.16.840.1.101.3.4.2.2": crypto.SHA384,
		"2.16.840.1.101.3.4.2.3": crypto.SHA512,
	}
)

// CheckSignature verifies a signature of an RSA or EC key. algorithm is the AlgorithmIdentifier in DER.
// CheckSignature accepts MD5 and SHA-1, as it only finds out which key signed. If espm can't verify the
// algorithm or the key, the error wraps ErrUnverifiable.
func CheckSignature(key crypto.PublicKey, algorithm, signed, signature []byte) error {
	how, err := schemeOf(algorithm)
	if err != nil {
		return err
	}
	h := how.hash.New()
	h.Write(signed)
	digest := h.Sum(nil)
	switch key := key.(type) {
	case *rsa.PublicKey:
		switch {
		case !how.rsa:
			return errors.New("the signature is not of an RSA key")
		case how.pss:
			return rsa.VerifyPSS(key, how.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
		}
		return rsa.VerifyPKCS1v15(key, how.hash, digest, signature)
	case *ecdsa.PublicKey:
		if how.rsa {
			return errors.New("the signature is not of an EC key")
		}
		if !ecdsa.VerifyASN1(key, digest, signature) {
			return errors.New("the signature is not of this EC key")
		}
		return nil
	}
	return fmt.Errorf("%w: by a %T", ErrUnverifiable, key)
}

// signedParts are the fields of a certificate in DER.
type signedParts struct {
	TBS, Algorithm asn1.RawValue
	Signature      asn1.BitString
}

// CheckIssued verifies that a CA's key signed a certificate in DER; see CheckSignature.
func CheckIssued(cert []byte, issuer *x509.Certificate) error {
	var fields signedParts
	if _, err := asn1.Unmarshal(cert, &fields); err != nil {
		return fmt.Errorf("read the signature: %w", err)
	}
	return CheckSignature(issuer.PublicKey, fields.Algorithm.FullBytes, fields.TBS.FullBytes, fields.Signature.RightAlign())
}

func schemeOf(algorithm []byte) (scheme, error) {
	var id pkix.AlgorithmIdentifier
	if _, err := asn1.Unmarshal(algorithm, &id); err != nil {
		return scheme{}, fmt.Errorf("%w: its algorithm can't be read: %w", ErrUnverifiable, err)
	}
	if id.Algorithm.Equal(oidPSS) {
		return schemeOfPSS(id.Parameters.FullBytes)
	}
	if how, ok := schemes[id.Algorithm.String()]; ok {
		return how, nil
	}
	return scheme{}, fmt.Errorf("%w: algorithm %s", ErrUnverifiable, id.Algorithm)
}

// schemeOfPSS parses the parameters of RSA-PSS (RFC 4055 section 3.1).
func schemeOfPSS(parameters []byte) (scheme, error) {
	var p struct {
		Hash    pkix.AlgorithmIdentifier `asn1:"explicit,optional,tag:0"`
		MGF     pkix.AlgorithmIdentifier `asn1:"explicit,optional,tag:1"`
		Salt    int                      `asn1:"explicit,optional,tag:2"`
		Trailer int                      `asn1:"explicit,optional,tag:3,default:1"`
	}
	if len(parameters) > 0 {
		if _, err := asn1.Unmarshal(parameters, &p); err != nil {
			return scheme{}, fmt.Errorf("%w: the parameters of RSA-PSS can't be read: %w", ErrUnverifiable, err)
		}
	}
	hash, masked := crypto.SHA1, crypto.SHA1 // the defaults of RFC 4055
	if p.Hash.Algorithm != nil {
		hash = hashes[p.Hash.Algorithm.String()]
	}
	if p.MGF.Algorithm != nil {
		var inner pkix.AlgorithmIdentifier
		if _, err := asn1.Unmarshal(p.MGF.Parameters.FullBytes, &inner); err != nil || !p.MGF.Algorithm.Equal(oidMGF1) {
			return scheme{}, fmt.Errorf("%w: RSA-PSS with mask generation function %s", ErrUnverifiable, p.MGF.Algorithm)
		}
		masked = hashes[inner.Algorithm.String()]
	}
	if hash == 0 || hash != masked || p.Trailer != 1 {
		return scheme{}, fmt.Errorf("%w: RSA-PSS with parameters %X", ErrUnverifiable, parameters)
	}
	return scheme{hash: hash, rsa: true, pss: true}, nil
}

// WeakHash returns the name of the hash of a certificate's signature if the hash is weak, otherwise "".
// The certificate is in DER.
func WeakHash(cert []byte) string {
	var fields signedParts
	if _, err := asn1.Unmarshal(cert, &fields); err != nil {
		return ""
	}
	return weakHash(fields.Algorithm.FullBytes)
}

// weakHash returns the name of an algorithm's hash if collisions can be computed for the hash, otherwise
// "".
func weakHash(algorithm []byte) string {
	how, err := schemeOf(algorithm)
	if err != nil || how.hash != crypto.MD5 && how.hash != crypto.SHA1 {
		return ""
	}
	return how.hash.String()
}
