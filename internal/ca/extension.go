package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/espm-project/espm/internal/node"
)

// Puppet's arcs below 1.3.6.1.4.1.34380.1 (Puppet's puppet/ssl/oids.rb).
var (
	arcRegistered    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 34380, 1, 1} // ppRegCertExt
	arcPrivate       = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 34380, 1, 2} // ppPrivCertExt: a site's own
	arcAuthorization = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 34380, 1, 3} // ppAuthCertExt: grants rights
)

// PPCliAuth with the value "true" allows a client to administer Puppet Server's CA.
// Neither Puppet nor espm accepts it from a CSR.
var PPCliAuth = append(slices.Clone(arcAuthorization), 39)

// PPAuthRole is a role by which Puppet's authorization, and espm's principals, know the holder.
var PPAuthRole = append(slices.Clone(arcAuthorization), 13)

// registered are the short names in arcRegistered: the name at index i has
// the OID arcRegistered.(i+1).
var registered = []string{
	"pp_uuid", "pp_instance_id", "pp_image_name", "pp_preshared_key", "pp_cost_center", "pp_product",
	"pp_project", "pp_application", "pp_service", "pp_employee", "pp_created_by", "pp_environment",
	"pp_role", "pp_software_version", "pp_department", "pp_cluster", "pp_provisioner", "pp_region",
	"pp_datacenter", "pp_zone", "pp_network", "pp_securitypolicy", "pp_cloudplatform", "pp_apptier",
	"pp_hostname", "pp_owner",
}

var shortNames, oidNames = extensionNames()

func extensionNames() (map[string]asn1.ObjectIdentifier, map[string]string) {
	oids := map[string]asn1.ObjectIdentifier{
		"pp_authorization": append(slices.Clone(arcAuthorization), 1),
		"pp_auth_role":     PPAuthRole,
		"pp_cli_auth":      PPCliAuth,
	}
	for i, name := range registered {
		oids[name] = append(slices.Clone(arcRegistered), i+1)
	}
	names := make(map[string]string, len(oids))
	for name, oid := range oids {
		names[oid.String()] = name
	}
	return oids, names
}

// The limits of extensions. An agent sends them with every request.
const (
	maxExtensions     = 64
	maxExtensionValue = 1024 // bytes
	maxOIDParts       = 20
)

// ParseExtensions reads extensions. Their keys are Puppet's short names ("pp_role") or
// dotted OIDs. It returns them in the form that Request wants. The error is a
// *node.InvalidError on fields like "extensions[pp_role]".
func ParseExtensions(values map[string]string) ([]Extension, error) {
	if len(values) > maxExtensions {
		return nil, node.Invalid("extensions", "at most %d, are %d", maxExtensions, len(values))
	}
	var exts []Extension
	var errs []error
	seen := make(map[string]bool, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		field := "extensions[" + clip(name) + "]"
		oid, err := parseExtensionName(field, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if seen[oid.String()] {
			errs = append(errs, node.Invalid(field, "set twice, by name and by OID"))
		}
		seen[oid.String()] = true
		if rule := valueRule(values[name]); rule != "" {
			errs = append(errs, node.Invalid(field, "%s", rule))
		}
		exts = append(exts, Extension{ID: oid, Value: values[name]})
	}
	if err := node.Join(errs...); err != nil {
		return nil, err
	}
	slices.SortFunc(exts, compareExtensions)
	return exts, nil
}

func parseExtensionName(field, name string) (asn1.ObjectIdentifier, error) {
	if oid, ok := shortNames[name]; ok {
		return oid, nil
	}
	oid, ok := parseOID(name)
	if !ok {
		return nil, node.Invalid(field, `must be a short name of Puppet such as "pp_role", or a dotted OID`)
	}
	if !isPuppet(oid) {
		return nil, node.Invalid(field, "must be below %s, %s or %s", arcRegistered, arcPrivate, arcAuthorization)
	}
	return oid, nil
}

func parseOID(s string) (asn1.ObjectIdentifier, bool) {
	parts := strings.Split(s, ".")
	if len(parts) > maxOIDParts {
		return nil, false
	}
	oid := make(asn1.ObjectIdentifier, len(parts))
	for i, part := range parts {
		// encoding/asn1, Ruby and Java do not all read more than 31 bits.
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil || strconv.FormatUint(n, 10) != part {
			return nil, false
		}
		oid[i] = int(n)
	}
	return oid, true
}

func valueRule(v string) string {
	switch {
	case v == "":
		return "must not be empty"
	case len(v) > maxExtensionValue:
		return fmt.Sprintf("at most %d bytes, is %d", maxExtensionValue, len(v))
	case !utf8.ValidString(v):
		return "must be valid UTF-8"
	case strings.ContainsRune(v, 0):
		return "must not hold NUL"
	}
	return ""
}

// below reports whether oid is in the arc, but not the arc itself.
func below(arc, oid asn1.ObjectIdentifier) bool {
	return len(oid) > len(arc) && slices.Equal(oid[:len(arc)], arc)
}

func isPuppet(oid asn1.ObjectIdentifier) bool {
	return below(arcRegistered, oid) || below(arcPrivate, oid) || below(arcAuthorization, oid)
}

// GrantsAuthorization reports whether an extension can give a client rights:
// the rules of Puppet's auth.conf read the arc 1.3.6.1.4.1.34380.1.3.
func (e Extension) GrantsAuthorization() bool { return below(arcAuthorization, e.ID) }

// ExtensionName returns Puppet's short name of an extension, or the dotted OID.
func ExtensionName(oid asn1.ObjectIdentifier) string {
	if name, ok := oidNames[oid.String()]; ok {
		return name
	}
	return oid.String()
}

// Extensions returns Puppet's extensions of a certificate, sorted by OID. A value
// that is no ASN.1 string is returned undecoded.
func Extensions(cert *x509.Certificate) []Extension {
	var exts []Extension
	for _, e := range cert.Extensions {
		if !isPuppet(e.Id) {
			continue
		}
		value, ok := stringValue(e.Value)
		if !ok {
			value = strings.ToValidUTF8(string(e.Value), "\uFFFD")
		}
		exts = append(exts, Extension{ID: e.Id, Value: value})
	}
	slices.SortFunc(exts, compareExtensions)
	return exts
}

// stringValue decodes a value of the string types that tools use for extensions.
func stringValue(der []byte) (string, bool) {
	var raw asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &raw); err != nil || len(rest) > 0 || raw.Class != asn1.ClassUniversal || raw.IsCompound {
		return "", false
	}
	switch raw.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String:
		return string(raw.Bytes), utf8.Valid(raw.Bytes)
	}
	return "", false
}

// encode returns the extension in the form that Puppet reads: a UTF8String, never critical.
func (e Extension) encode() (pkix.Extension, error) {
	der, err := asn1.MarshalWithParams(e.Value, "utf8")
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encode extension %s: %w", e.ID, err)
	}
	return pkix.Extension{Id: e.ID, Value: der}, nil
}

func compareExtensions(a, b Extension) int { return slices.Compare(a.ID, b.ID) }

// clip returns a name for a field's path. Long names, and names with unusual characters, are quoted.
func clip(name string) string {
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '.' {
			return node.Quote(name)
		}
	}
	if len(name) > node.MaxQuoted {
		return node.Quote(name)
	}
	return name
}
