package ca

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// The limits of a Request, and its default TTL.
const (
	DefaultTTL = 1825 * 24 * time.Hour // Puppet's ca_ttl: five years
	MinTTL     = time.Minute
	MaxTTL     = 1576800000 * time.Second // Puppet Server's max-ca-ttl: fifty years

	maxDNSAltNames = 100
)

// CheckRequest checks the certname, dns_alt_names, extensions and ttl of a request, which need neither
// an authority nor a key. Sign also compares the ttl with the CA's end. The error is a *node.InvalidError.
func CheckRequest(r Request) error {
	_, nameErr := node.ParseCertname(string(r.Certname))
	errs := []error{nameErr, checkTTL(r.TTL)}
	if n := len(r.DNSAltNames); n > maxDNSAltNames {
		errs = append(errs, node.Invalid("dns_alt_names", "at most %d names, are %d", maxDNSAltNames, n))
	} else {
		for i, name := range r.DNSAltNames {
			errs = append(errs, node.CheckDNSName(fmt.Sprintf("dns_alt_names[%d]", i), name))
		}
	}
	if n := len(r.Extensions); n > maxExtensions {
		errs = append(errs, node.Invalid("extensions", "at most %d, are %d", maxExtensions, n))
	}
	for _, e := range r.Extensions {
		field := "extensions[" + ExtensionName(e.ID) + "]"
		if !isPuppet(e.ID) {
			errs = append(errs, node.Invalid(field, "must be below %s, %s or %s", arcRegistered, arcPrivate, arcAuthorization))
		}
		if rule := valueRule(e.Value); rule != "" {
			errs = append(errs, node.Invalid(field, "%s", rule))
		}
	}
	return node.Join(errs...)
}

func checkTTL(ttl time.Duration) error {
	switch {
	case ttl == 0:
		return nil
	case ttl < MinTTL:
		return node.Invalid("ttl", "at least %v, is %v", node.Duration(MinTTL), node.Duration(ttl))
	case ttl > MaxTTL:
		return node.Invalid("ttl", "at most %v (fifty years), is %v", node.Duration(MaxTTL), node.Duration(ttl))
	}
	return nil
}

// CleanDNSAltNames returns the names in the form that Request wants: sorted,
// without duplicates and without the certname.
func CleanDNSAltNames(name node.Certname, names []string) []string {
	var out []string
	for _, n := range names {
		if n != string(name) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// WithCSR returns the request with the caller's CSR, which ParseCSR returned. It merges the two:
//   - The CSR may only have names that are the certname or that the call asks for.
//   - The CSR's registered and private extensions are added. If the call sets one of them
//     to another value, that is an error.
//   - An authorization extension of the CSR is an error, unless the call asks for it too.
//
// The error is a *node.InvalidError on field "csr_pem".
func (r Request) WithCSR(csr *x509.CertificateRequest) (Request, error) {
	var errs []error
	for _, name := range csr.DNSNames {
		if name != string(r.Certname) && !slices.Contains(r.DNSAltNames, name) {
			errs = append(errs, node.Invalid("csr_pem",
				"asks for the subject alternative name %q, which is not among dns_alt_names", name))
		}
	}
	exts := slices.Clone(r.Extensions)
	for _, asked := range csrExtensions(csr) {
		i := slices.IndexFunc(r.Extensions, func(e Extension) bool { return e.ID.Equal(asked.ID) })
		switch name := ExtensionName(asked.ID); {
		case i >= 0 && r.Extensions[i].Value != asked.Value:
			errs = append(errs, node.Invalid("csr_pem", "asks for extension %s with another value than the call", name))
		case i < 0 && asked.GrantsAuthorization():
			errs = append(errs, node.Invalid("csr_pem",
				"asks for the authorization extension %s, which the call does not ask for", name))
		case i < 0:
			exts = append(exts, asked)
		}
	}
	if len(exts) > maxExtensions {
		errs = append(errs, node.Invalid("csr_pem", "at most %d extensions with those of the call, are %d", maxExtensions, len(exts)))
	}
	if err := node.Join(errs...); err != nil {
		return Request{}, err
	}
	slices.SortFunc(exts, compareExtensions)
	r.CSR, r.Key, r.Extensions = csr, nil, exts
	return r, nil
}
