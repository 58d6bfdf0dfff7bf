package ca

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// ttlSlack is the allowed difference between the TTL of a request and of its certificate.
// Puppet Server reads its clock twice and counts in whole seconds.
const ttlSlack = 10 * time.Second

// Wanted has what a certificate must match to be the requested one. It can be
// stored, unlike a Request, which has the private key.
type Wanted struct {
	Certname    node.Certname
	KeyHash     string
	DNSAltNames []string          // without the certname
	Extensions  map[string]string // Puppet's, by dotted OID
	TTL         time.Duration     // 0: any from MinTTL on
}

// Wanted returns what a certificate for r must match.
func (r Request) Wanted() (Wanted, error) {
	hash, err := KeyHash(r.PublicKey())
	if err != nil {
		return Wanted{}, err
	}
	exts := make(map[string]string, len(r.Extensions))
	for _, e := range r.Extensions {
		exts[e.ID.String()] = e.Value
	}
	return Wanted{r.Certname, hash, r.DNSAltNames, exts, r.TTL}, nil
}

// Check returns nil if a certificate is the requested one; else the error names the difference. It compares
// the key, the name, the subject alternative names, Puppet's
// extensions and the TTL, and refuses a CA's certificate. The TTL counts from NotBefore plus Backdate, so
// that it does not matter if the clocks of espm and Puppet Server differ.
func (w Wanted) Check(cert *x509.Certificate) error {
	hash, err := KeyHash(cert.PublicKey)
	if err != nil {
		return err
	}
	names := slices.Sorted(slices.Values(append([]string{string(w.Certname)}, w.DNSAltNames...)))
	exts := map[string]string{}
	for _, e := range Extensions(cert) {
		exts[e.ID.String()] = e.Value
	}
	var differs string
	switch life := cert.NotAfter.Sub(cert.NotBefore) - Backdate; {
	case hash != w.KeyHash:
		differs = "another key"
	case cert.Subject.CommonName != string(w.Certname):
		differs = fmt.Sprintf("the name %s", node.Quote(cert.Subject.CommonName))
	case !slices.Equal(slices.Sorted(slices.Values(cert.DNSNames)), names):
		differs = fmt.Sprintf("the DNS names %q instead of %q", cert.DNSNames, names)
	case len(cert.IPAddresses)+len(cert.EmailAddresses)+len(cert.URIs) > 0:
		differs = "names that are not DNS names"
	case !maps.Equal(exts, w.Extensions):
		differs = fmt.Sprintf("the extensions %q instead of %q", exts, w.Extensions)
	case cert.IsCA:
		differs = "a CA's rights"
	case life < max(w.TTL, MinTTL)-ttlSlack || w.TTL != 0 && life > w.TTL+ttlSlack:
		differs = fmt.Sprintf("a life of %v instead of %v", node.Duration(life), node.Duration(w.TTL))
	default:
		return nil
	}
	return fmt.Errorf("the certificate %s of %q has %s", node.SerialOf(cert.SerialNumber), w.Certname, differs)
}
