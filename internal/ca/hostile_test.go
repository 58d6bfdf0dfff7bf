package ca_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
)

// What somebody sends who means harm: each is refused by one rule.
func TestParseCSRRefusesHostile(t *testing.T) {
	good := makeCSR(t, rsaKey(), nil)
	small := block("CERTIFICATE REQUEST", []byte{0x30, 0})
	headers := func(n int) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Headers: map[string]string{"X": strings.Repeat("x", n)}, Bytes: decode(good)})
	}
	tests := map[string]struct {
		pem  []byte
		rule string
	}{
		"1,000,000 blocks":              {bytes.Repeat(small, 1_000_000), "at most 65536 bytes"},
		"500 blocks":                    {bytes.Repeat(small, 500), "one PEM block and nothing else"},
		"broken block, then a good one": {append([]byte("-----BEGIN CERTIFICATE REQUEST-----\n!\n"), good...), "one PEM block and nothing else"},
		"headers":                       {headers(1), "must have no PEM headers"},
		"headers of 40 KB":              {headers(40_000), "must have no PEM headers"},
		"headers of 1 MB":               {headers(1 << 20), "at most 65536 bytes"},
		"garbage after":                 {append(bytes.Clone(good), "garbage"...), "one PEM block and nothing else"},
		"DER after the request":         {block("CERTIFICATE REQUEST", append(bytes.Clone(decode(good)), 0x30, 0)), "can't be read"},
		"10,000 names of a byte":        {makeCSR(t, rsaKey(), func(c *x509.CertificateRequest) { c.DNSNames = slices.Repeat([]string{"a"}, 10_000) }), "at most 100 subject alternative names, are 10000"},
		"nested 10,000 deep":            {block("CERTIFICATE REQUEST", nested(10_000)), "can't be read"},
		"MD5":                           {hashedCSR(t, 4), "must be signed with SHA-256, SHA-384 or SHA-512, is signed with MD5-RSA"},
		"MD2":                           {hashedCSR(t, 2), "must be signed with SHA-256, SHA-384 or SHA-512"},
		"SHA-224":                       {hashedCSR(t, 14), "must be signed with SHA-256, SHA-384 or SHA-512"},
		"RSA-2047":                      {rawCSR(t, weakKey(t, 2047, 65537)), "2048 to 8192 bits, has 2047"},
		"RSA-8193":                      {rawCSR(t, weakKey(t, 8193, 65537)), "2048 to 8192 bits, has 8193"},
		"RSA-180,000":                   {hugeCSR(t), "2048 to 8192 bits, has 180000"},
		"even exponent":                 {rawCSR(t, weakKey(t, 2048, 65538)), "exponent must be odd and at least 65537, is 65538"},
		"even modulus":                  {rawCSR(t, evenKey(t)), "modulus must be odd"},
		"secp256k1":                     {secp256k1CSR(t), "unsupported elliptic curve"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ca.ParseCSR(test.pem, certname)
			checkInvalid(t, err, "csr_pem", test.rule)
		})
	}
}

// A stranger's key costs nothing before its size is known to be one that is taken.
func TestHugeKeyIsNotComputedWith(t *testing.T) {
	huge := hugeCSR(t)
	csr, err := x509.ParseCertificateRequest(decode(huge))
	if err != nil {
		t.Fatal(err)
	}
	verify := fastest(func() { _ = csr.CheckSignature() })
	refuse := fastest(func() { _, _ = ca.ParseCSR(huge, certname) })
	if verify < 10*time.Millisecond {
		t.Fatalf("verifying takes %v: too little to see a difference by", verify)
	}
	if refuse > verify/4 {
		t.Errorf("refused after %v; verifying its signature takes %v", refuse, verify)
	}
}

// fastest is the best of a few: others work on this machine too.
func fastest(do func()) time.Duration {
	best := time.Hour
	for range 5 {
		began := time.Now()
		do()
		best = min(best, time.Since(began))
	}
	return best
}

// hugeCSR has a signature as long as its key, as else no verifier begins to compute.
func hugeCSR(t *testing.T) []byte {
	t.Helper()
	const bits = 180_000
	n := new(big.Int).Lsh(big.NewInt(1), bits)
	pub := &rsa.PublicKey{N: n.Sub(n, big.NewInt(12345)), E: 65537}
	sig := bytes.Repeat([]byte{0x55}, bits/8)
	return rawSigned(t, pub, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, func([]byte) []byte { return sig })
}

// hashedCSR names one of PKCS #1's algorithms (RFC 8017 appendix C); its signature is void.
func hashedCSR(t *testing.T, algorithm int) []byte {
	t.Helper()
	key := rsaKey().Public().(*rsa.PublicKey)
	return rawSigned(t, key, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, algorithm}, func([]byte) []byte { return make([]byte, 256) })
}

func evenKey(t *testing.T) *rsa.PublicKey {
	t.Helper()
	pub := weakKey(t, 2048, 65537)
	pub.N.SetBit(pub.N, 0, 0)
	return pub
}

// secp256k1CSR has a key on a curve that Bitcoin uses and TLS does not.
func secp256k1CSR(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/secp256k1.csr.pem")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func nested(depth int) []byte {
	der := []byte{0x30, 0}
	for range depth {
		b, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: der})
		if err != nil {
			panic(err)
		}
		der = b
	}
	return der
}
