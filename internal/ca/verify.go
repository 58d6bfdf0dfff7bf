package ca

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// ttlSlack is how much longer or shorter than asked a certificate may last:
// Puppet Server reads its clock twice and counts in whole seconds.
const ttlSlack = 10 * time.Second

// Wanted is what a certificate must be to be the one that was asked for. It
// outlives the Request, whose private key is never written down.
type Wanted struct {
	Certname    node.Certname
	KeyHash     string
	DNSAltNames []string          // besides the certname
	Extensions  map[string]string // Puppet's, by dotted OID
	TTL         time.Duration     // 0: any from MinTTL on
}

// Wanted returns what r asks for.
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

// Check says in what a certificate differs from what was asked for; nil if in
// nothing that matters: key, name, subject alternative names, Puppet's
// extensions, that it is no CA, and how long it lasts. The length of
// its life is measured from Backdate after its start, as profile and Puppet Server have
// it, so that the two clocks need not agree.
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
