package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

const certname node.Certname = "web.example.com"

func TestParseCSR(t *testing.T) {
	valid := map[string]struct {
		key    crypto.Signer
		change func(*x509.CertificateRequest)
	}{
		"P-256":         {ecKey(t, elliptic.P256()), nil},
		"P-384":         {ecKey(t, elliptic.P384()), nil},
		"P-521":         {ecKey(t, elliptic.P521()), nil},
		"RSA":           {rsaKey(), nil},
		"RSA SHA-512":   {rsaKey(), func(c *x509.CertificateRequest) { c.SignatureAlgorithm = x509.SHA512WithRSA }},
		"more subject":  {rsaKey(), func(c *x509.CertificateRequest) { c.Subject.Organization = []string{"Example"} }},
		"names":         {rsaKey(), func(c *x509.CertificateRequest) { c.DNSNames = []string{"a.example.com", string(certname)} }},
		"registered":    {rsaKey(), func(c *x509.CertificateRequest) { c.ExtraExtensions = exts(utf8(t, "web"), 1, 13) }},
		"private":       {rsaKey(), func(c *x509.CertificateRequest) { c.ExtraExtensions = exts(utf8(t, "x"), 2, 1, 1) }},
		"authorization": {rsaKey(), func(c *x509.CertificateRequest) { c.ExtraExtensions = exts(utf8(t, "true"), 3, 1) }},
		"printable":     {rsaKey(), func(c *x509.CertificateRequest) { c.ExtraExtensions = exts([]byte{0x13, 1, 'x'}, 1, 13) }},
	}
	for name, test := range valid {
		t.Run(name, func(t *testing.T) {
			if _, err := ca.ParseCSR(makeCSR(t, test.key, test.change), certname); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestParseCSRRefuses(t *testing.T) {
	good := makeCSR(t, rsaKey(), nil)
	with := func(change func(*x509.CertificateRequest)) []byte { return makeCSR(t, rsaKey(), change) }
	names := func(names ...string) []byte {
		return with(func(c *x509.CertificateRequest) { c.DNSNames = names })
	}
	extension := func(value []byte, tail ...int) []byte {
		return with(func(c *x509.CertificateRequest) { c.ExtraExtensions = exts(value, tail...) })
	}
	many := make([]string, 10_000)
	for i := range many {
		many[i] = fmt.Sprintf("n%d.example.com", i)
	}
	tests := map[string]struct {
		pem  []byte
		rule string
	}{
		"nothing":          {nil, "holds no PEM block"},
		"garbage":          {[]byte("garbage"), "holds no PEM block"},
		"10 MB":            {make([]byte, 10<<20), "at most 65536 bytes"},
		"10,000 names":     {names(many...), "at most 65536 bytes"},
		"101 names":        {names(many[:101]...), "at most 100 subject alternative names"},
		"two blocks":       {append(bytes.Clone(good), good...), "one PEM block and nothing else"},
		"text before":      {append([]byte("Certificate Request:\n"), good...), "one PEM block and nothing else"},
		"a certificate":    {block("CERTIFICATE", []byte{0x30, 0}), "must be a CERTIFICATE REQUEST"},
		"a private key":    {block("PRIVATE KEY", []byte{0x30, 0}), "must be a CERTIFICATE REQUEST"},
		"truncated":        {block("CERTIFICATE REQUEST", decode(good)[:200]), "can't be read"},
		"forged":           {forged(good), "is not signed by its own key"},
		"other name":       {with(func(c *x509.CertificateRequest) { c.Subject.CommonName = "db.example.com" }), "must be the certname"},
		"upper case":       {with(func(c *x509.CertificateRequest) { c.Subject.CommonName = "Web.example.com" }), "must be the certname"},
		"no name":          {with(func(c *x509.CertificateRequest) { c.Subject.CommonName = "" }), "one common name, has 0"},
		"two names":        {with(twoNames), "one common name, has 2"},
		"SHA-1":            {sha1CSR(t), "signed with SHA1-RSA"},
		"RSA-1024":         {rawCSR(t, weakKey(t, 1024, 65537)), "2048 to 8192 bits, has 1024"},
		"exponent 1":       {rawCSR(t, weakKey(t, 2048, 1)), "exponent must be odd and at least 65537, is 1"},
		"exponent 3":       {rawCSR(t, weakKey(t, 2048, 3)), "exponent must be odd and at least 65537, is 3"},
		"RSA-16384":        {rawCSR(t, weakKey(t, 16384, 65537)), "2048 to 8192 bits, has 16384"},
		"P-224":            {makeCSR(t, ecKey(t, elliptic.P224()), nil), "must be on P-256, P-384 or P-521"},
		"Ed25519":          {makeCSR(t, edKey(t), nil), "must be RSA or EC"},
		"wildcard":         {names("*.example.com"), "wildcards are not allowed"},
		"name in capitals": {names("Web.example.com"), "must be lower case"},
		"path":             {names("../x"), "labels"},
		"IP address":       {with(func(c *x509.CertificateRequest) { c.IPAddresses = []net.IP{{10, 0, 0, 1}} }), "one is a IP address"},
		"URI":              {with(func(c *x509.CertificateRequest) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }), "one is a URI"},
		"email":            {with(func(c *x509.CertificateRequest) { c.EmailAddresses = []string{"a@example.com"} }), "one is a email address"},
		"directory name":   {with(func(c *x509.CertificateRequest) { c.ExtraExtensions = []pkix.Extension{directoryName} }), "one is a directory name"},
		"key usage":        {with(func(c *x509.CertificateRequest) { c.ExtraExtensions = []pkix.Extension{keyUsage} }), "asks for extension 2.5.29.15"},
		"pp_cli_auth":      {extension(utf8(t, "true"), 3, 39), "asks for extension pp_cli_auth"},
		"arc itself":       {extension(utf8(t, "x"), 1), "asks for extension 1.3.6.1.4.1.34380.1.1,"},
		"not a string":     {extension([]byte{2, 1, 1}, 1, 13), "extension pp_role must be a UTF8String"},
		"raw bytes":        {extension([]byte("web"), 1, 13), "extension pp_role must be a UTF8String"},
		"long value":       {extension(utf8(t, strings.Repeat("x", 1025)), 1, 13), "extension pp_role: at most 1024 bytes"},
		"empty value":      {extension(utf8(t, ""), 1, 13), "extension pp_role: must not be empty"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ca.ParseCSR(test.pem, certname)
			checkInvalid(t, err, "csr_pem", test.rule)
		})
	}
}

func TestWithCSR(t *testing.T) {
	parse := func(change func(*x509.CertificateRequest)) *x509.CertificateRequest {
		csr, err := ca.ParseCSR(makeCSR(t, rsaKey(), change), certname)
		if err != nil {
			t.Fatal(err)
		}
		return csr
	}
	role := parse(func(c *x509.CertificateRequest) {
		c.DNSNames = []string{string(certname), "www.example.com"}
		c.ExtraExtensions = exts(utf8(t, "web"), 1, 13)
	})
	auth := parse(func(c *x509.CertificateRequest) { c.ExtraExtensions = exts(utf8(t, "true"), 3, 1) })
	tests := map[string]struct {
		csr   *x509.CertificateRequest
		names []string
		exts  map[string]string
		want  string // extensions, or the rule broken
	}{
		"copied":             {role, []string{"www.example.com"}, nil, "pp_role=web"},
		"asked by both":      {role, []string{"www.example.com", "x.example.com"}, map[string]string{"pp_role": "web"}, "pp_role=web"},
		"united, sorted":     {role, []string{"www.example.com"}, map[string]string{"pp_uuid": "1", "pp_zone": "z"}, "pp_uuid=1 pp_role=web pp_zone=z"},
		"contradicted":       {role, []string{"www.example.com"}, map[string]string{"pp_role": "db"}, "!asks for extension pp_role with another value"},
		"name not asked for": {role, nil, nil, `!asks for the subject alternative name "www.example.com"`},
		"authorized":         {auth, nil, map[string]string{"pp_authorization": "true"}, "pp_authorization=true"},
		"not authorized":     {auth, nil, nil, "!asks for the authorization extension pp_authorization"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			asked, err := ca.ParseExtensions(test.exts)
			if err != nil {
				t.Fatal(err)
			}
			r, err := ca.Request{Certname: certname, DNSAltNames: test.names, Extensions: asked}.WithCSR(test.csr)
			if rule, bad := strings.CutPrefix(test.want, "!"); bad {
				checkInvalid(t, err, "csr_pem", rule)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range r.Extensions {
				got = append(got, ca.ExtensionName(e.ID)+"="+e.Value)
			}
			if joined := strings.Join(got, " "); joined != test.want || r.CSR != test.csr {
				t.Errorf("extensions %q, want %q", joined, test.want)
			}
		})
	}
}

func FuzzParseCSR(f *testing.F) {
	for _, name := range []string{"testdata/web1.csr.pem", "testdata/web2.csr.pem"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		csr, err := ca.ParseCSR(data, "web1.example.com")
		if err != nil {
			if !errors.Is(err, node.ErrInvalid) {
				t.Errorf("error %v is not the caller's", err)
			}
			return
		}
		if _, err := ca.KeyHash(csr.PublicKey); err != nil {
			t.Error(err)
		}
	})
}

// checkInvalid checks that err breaks one rule of a field, on one line.
func checkInvalid(t *testing.T, err error, field, rule string) {
	t.Helper()
	invalid, ok := errors.AsType[*node.InvalidError](err)
	if !ok {
		t.Fatalf("error %v, want an InvalidError on %s", err, field)
	}
	if v := invalid.Violations[0]; v.Field != field || !strings.Contains(v.Rule, rule) {
		t.Errorf("error %q on %q, want %q on %q", v.Rule, v.Field, rule, field)
	}
	if len(err.Error()) > 4096 || strings.Contains(err.Error(), "\n") {
		t.Errorf("error of %d bytes: %.200s", len(err.Error()), err)
	}
}

func makeCSR(t testing.TB, key crypto.Signer, change func(*x509.CertificateRequest)) []byte {
	t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: string(certname)}}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE REQUEST", der)
}

// rawCSR is one whose key x509 would not sign with; its signature is void.
func rawCSR(t *testing.T, pub *rsa.PublicKey) []byte {
	t.Helper()
	return rawSigned(t, pub, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, func([]byte) []byte { return make([]byte, 256) })
}

// sha1CSR is signed with SHA-1, and well.
func sha1CSR(t *testing.T) []byte {
	t.Helper()
	key := rsaKey().(*rsa.PrivateKey)
	return rawSigned(t, &key.PublicKey, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, func(tbs []byte) []byte {
		sum := sha1.Sum(tbs)
		sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA1, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return sig
	})
}

func rawSigned(t *testing.T, pub *rsa.PublicKey, alg asn1.ObjectIdentifier, sign func(tbs []byte) []byte) []byte {
	t.Helper()
	subject, err := ca.CommonName(string(certname))
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	tbs, err := asn1.Marshal(struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}{Subject: asn1.RawValue{FullBytes: subject}, PublicKey: asn1.RawValue{FullBytes: spki}})
	if err != nil {
		t.Fatal(err)
	}
	sig := sign(tbs)
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, pkix.AlgorithmIdentifier{Algorithm: alg, Parameters: asn1.NullRawValue}, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE REQUEST", der)
}

func weakKey(t *testing.T, bits uint, e int) *rsa.PublicKey {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(12345)), E: e}
}

// forged spoils the last byte, which is the signature's.
func forged(good []byte) []byte {
	der := bytes.Clone(decode(good))
	der[len(der)-1] ^= 1
	return block("CERTIFICATE REQUEST", der)
}

func twoNames(c *x509.CertificateRequest) {
	cn := asn1.ObjectIdentifier{2, 5, 4, 3}
	c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: cn, Value: string(certname)}, {Type: cn, Value: "other"}}
}

var (
	keyUsage = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 7, 0x80}}
	// directoryName is a subject alternative name of a kind that x509 passes over.
	directoryName = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: []byte{0x30, 4, 0xa4, 2, 0x30, 0}}
)

// exts is one extension below Puppet's arc.
func exts(value []byte, tail ...int) []pkix.Extension {
	return []pkix.Extension{{Id: append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 34380, 1}, tail...), Value: value}}
}

func utf8(t *testing.T, s string) []byte {
	t.Helper()
	der, err := asn1.MarshalWithParams(s, "utf8")
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func decode(data []byte) []byte {
	b, _ := pem.Decode(data)
	return b.Bytes
}

func ecKey(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func edKey(t *testing.T) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rsaKey is one key for all: generating takes long.
var rsaKey = sync.OnceValue(func() crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})
