package ca

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// maxCSR is the longest PEM of a CSR. A CSR with an 8192-bit key and a hundred names has under 10 KiB.
const maxCSR = 64 << 10

var (
	oidCommonName     = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidMicrosoftExts  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}
)

// ParseCSR reads a caller's CSR (PKCS #10, RFC 2986) for a certname and checks it.
// Request.WithCSR checks the rest, which depends on the call. The
// rules are Puppet Server's, but some are stricter:
//   - One PEM block of at most 64 KiB without headers, and nothing else. It is signed by its own key,
//     with SHA-256, SHA-384 or SHA-512.
//   - One common name, equal to the certname. The certificate does not get the other parts of the
//     subject, as in Puppet Server.
//   - An RSA key of 2048 to 8192 bits or an EC key on P-256, P-384 or P-521.
//     Agents generate these (Puppet's settings key_type, named_curve), and TLS
//     accepts them. An RSA exponent is odd and at least 65537 (FIPS 186-5 section
//     A.1.1); OpenSSL, Java and Go generate no other.
//   - Subject alternative names are DNS names without wildcards. Puppet Server also
//     allows IP addresses.
//   - Puppet's own extensions except pp_cli_auth. Their values are ASN.1 strings.
//
// The error is a *node.InvalidError on field "csr_pem".
func ParseCSR(pemBytes []byte, name node.Certname) (*x509.CertificateRequest, error) {
	der, err := decodeCSR(pemBytes)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, node.Invalid("csr_pem", "can't be read: %v", err)
	}
	// The key is checked before the signature: the sender chooses the key's length, and a long
	// key makes the verification slow.
	if err := cmp.Or(checkCSRName(csr, name), checkPublicKey(csr.PublicKey)); err != nil {
		return nil, err
	}
	if err := cmp.Or(checkCSRSignature(csr), checkAttributes(csr), checkCSRExtensions(csr)); err != nil {
		return nil, err
	}
	return csr, nil
}

func decodeCSR(pemBytes []byte) ([]byte, error) {
	if len(pemBytes) > maxCSR {
		return nil, node.Invalid("csr_pem", "at most %d bytes, is %d", maxCSR, len(pemBytes))
	}
	block, rest := pem.Decode(pemBytes)
	if block == nil {
		return nil, node.Invalid("csr_pem", "holds no PEM block")
	}
	// pem.Decode skips any text before the block, even a broken block.
	lead := bytes.TrimSpace(pemBytes)
	if !bytes.HasPrefix(lead, []byte("-----BEGIN ")) || bytes.Count(lead, []byte("-----BEGIN")) > 1 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, node.Invalid("csr_pem", "must be one PEM block and nothing else")
	}
	if len(block.Headers) > 0 { // RFC 7468 section 2 has no headers, but RFC 1421 has
		return nil, node.Invalid("csr_pem", "must have no PEM headers")
	}
	// OpenSSL accepts both names.
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, node.Invalid("csr_pem", "must be a CERTIFICATE REQUEST, is a %s", node.Quote(block.Type))
	}
	return block.Bytes, nil
}

func checkCSRName(csr *x509.CertificateRequest, name node.Certname) error {
	var cns []string
	for _, part := range csr.Subject.Names {
		if part.Type.Equal(oidCommonName) {
			cn, _ := part.Value.(string)
			cns = append(cns, cn)
		}
	}
	if len(cns) != 1 {
		return node.Invalid("csr_pem", "the subject must have one common name, has %d", len(cns))
	}
	if cns[0] != string(name) {
		return node.Invalid("csr_pem", "the common name must be the certname %q, is %s", string(name), node.Quote(cns[0]))
	}
	return nil
}

func checkPublicKey(pub any) error {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if bits := pub.N.BitLen(); bits < 2048 || bits > 8192 {
			return node.Invalid("csr_pem", "an RSA key must have 2048 to 8192 bits, has %d", bits)
		}
		if pub.E < 65537 || pub.E%2 == 0 {
			return node.Invalid("csr_pem", "an RSA key's exponent must be odd and at least 65537, is %d", pub.E)
		}
		if pub.N.Bit(0) == 0 {
			return node.Invalid("csr_pem", "an RSA key's modulus must be odd")
		}
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() && pub.Curve != elliptic.P384() && pub.Curve != elliptic.P521() {
			return node.Invalid("csr_pem", "an EC key must be on P-256, P-384 or P-521, is on %s", pub.Curve.Params().Name)
		}
	default:
		return node.Invalid("csr_pem", "the key must be RSA or EC")
	}
	return nil
}

// SHA-1 is not among them, although crypto/x509 still verifies it on a CSR.
var csrSignatures = []x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
}

func checkCSRSignature(csr *x509.CertificateRequest) error {
	if !slices.Contains(csrSignatures, csr.SignatureAlgorithm) {
		return node.Invalid("csr_pem", "must be signed with SHA-256, SHA-384 or SHA-512, is signed with %s", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return node.Invalid("csr_pem", "is not signed by its own key: %v", err)
	}
	return nil
}

// checkAttributes refuses Microsoft's attribute for requested extensions. Puppet
// reads it and crypto/x509 does not, so espm would drop these extensions without an error.
func checkAttributes(csr *x509.CertificateRequest) error {
	var info struct { // CertificationRequestInfo, RFC 2986 section 4.1
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	if _, err := asn1.Unmarshal(csr.RawTBSCertificateRequest, &info); err != nil {
		return node.Invalid("csr_pem", "can't be read: %v", err)
	}
	for _, raw := range info.Attributes {
		var attr struct {
			ID     asn1.ObjectIdentifier
			Values asn1.RawValue
		}
		if _, err := asn1.Unmarshal(raw.FullBytes, &attr); err != nil {
			return node.Invalid("csr_pem", "has an attribute that can't be read: %v", err)
		}
		if attr.ID.Equal(oidMicrosoftExts) {
			return node.Invalid("csr_pem", "asks for extensions in Microsoft's attribute %s; use PKCS #9's extensionRequest", attr.ID)
		}
	}
	return nil
}

func checkCSRExtensions(csr *x509.CertificateRequest) error {
	var errs []error
	for _, e := range csr.Extensions {
		errs = append(errs, checkCSRExtension(e))
	}
	if len(csr.Extensions) > maxExtensions+1 { // the alternative names are an extension too
		errs = []error{node.Invalid("csr_pem", "at most %d extensions, are %d", maxExtensions, len(csr.Extensions))}
	}
	return node.Join(errs...)
}

func checkCSRExtension(e pkix.Extension) error {
	if e.Id.Equal(oidSubjectAltName) {
		return checkCSRNames(e.Value)
	}
	if !isPuppet(e.Id) || e.Id.Equal(PPCliAuth) {
		return node.Invalid("csr_pem", "asks for extension %s, which is not permitted", ExtensionName(e.Id))
	}
	value, ok := stringValue(e.Value)
	if !ok {
		return node.Invalid("csr_pem", "extension %s must be a UTF8String", ExtensionName(e.Id))
	}
	if rule := valueRule(value); rule != "" {
		return node.Invalid("csr_pem", "extension %s: %s", ExtensionName(e.Id), rule)
	}
	return nil
}

// generalNames are the kinds of subject alternative names (RFC 5280 section 4.2.1.6), by tag.
var generalNames = []string{
	"other name", "email address", "DNS name", "X.400 address", "directory name",
	"EDI party name", "URI", "IP address", "registered ID",
}

const tagDNSName = 2

// checkCSRNames decodes the names without crypto/x509, which skips unknown kinds.
func checkCSRNames(der []byte) error {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &names); err != nil || len(rest) > 0 {
		return node.Invalid("csr_pem", "the subject alternative names can't be read")
	}
	if len(names) > maxDNSAltNames {
		return node.Invalid("csr_pem", "at most %d subject alternative names, are %d", maxDNSAltNames, len(names))
	}
	var errs []error
	for _, n := range names {
		if n.Class == asn1.ClassContextSpecific && n.Tag == tagDNSName {
			errs = append(errs, node.CheckDNSName("csr_pem", string(n.Bytes)))
			continue
		}
		kind := "name of an unknown kind"
		if n.Class == asn1.ClassContextSpecific && n.Tag < len(generalNames) {
			kind = generalNames[n.Tag]
		}
		errs = append(errs, node.Invalid("csr_pem", "subject alternative names must be DNS names, one is a %s", kind))
	}
	return node.Join(errs...)
}

// csrExtensions returns the Puppet extensions of a CSR that ParseCSR returned.
func csrExtensions(csr *x509.CertificateRequest) []Extension {
	var exts []Extension
	for _, e := range csr.Extensions {
		if value, ok := stringValue(e.Value); ok && isPuppet(e.Id) {
			exts = append(exts, Extension{ID: e.Id, Value: value})
		}
	}
	return exts
}
