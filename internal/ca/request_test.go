package ca_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

func TestParseExtensions(t *testing.T) {
	exts, err := ca.ParseExtensions(map[string]string{
		"pp_cli_auth": "true", "pp_owner": "ops", "1.3.6.1.4.1.34380.1.2.1.1": "own", "1.3.6.1.4.1.34380.1.1.1": "u",
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range exts {
		got = append(got, fmt.Sprintf("%s %s %s %v", e.ID, ca.ExtensionName(e.ID), e.Value, e.GrantsAuthorization()))
	}
	want := []string{
		"1.3.6.1.4.1.34380.1.1.1 pp_uuid u false",
		"1.3.6.1.4.1.34380.1.1.26 pp_owner ops false",
		"1.3.6.1.4.1.34380.1.2.1.1 1.3.6.1.4.1.34380.1.2.1.1 own false",
		"1.3.6.1.4.1.34380.1.3.39 pp_cli_auth true true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestParseExtensionsRefuses(t *testing.T) {
	many := make(map[string]string)
	for i := range 65 {
		many[fmt.Sprintf("1.3.6.1.4.1.34380.1.2.%d", i)] = "x"
	}
	tests := map[string]struct {
		values      map[string]string
		field, rule string
	}{
		"unknown name":  {map[string]string{"pp_rôle": "x"}, `extensions["pp_rôle"]`, "must be a short name"},
		"empty":         {map[string]string{"pp_role": ""}, "extensions[pp_role]", "must not be empty"},
		"long":          {map[string]string{"pp_role": strings.Repeat("x", 1025)}, "extensions[pp_role]", "at most 1024 bytes, is 1025"},
		"not UTF-8":     {map[string]string{"pp_role": "\xff"}, "extensions[pp_role]", "valid UTF-8"},
		"NUL":           {map[string]string{"pp_role": "a\x00b"}, "extensions[pp_role]", "NUL"},
		"other arc":     {map[string]string{"2.5.29.17": "x"}, "extensions[2.5.29.17]", "must be below"},
		"the arc":       {map[string]string{"1.3.6.1.4.1.34380.1.1": "x"}, "extensions[1.3.6.1.4.1.34380.1.1]", "must be below"},
		"leading zero":  {map[string]string{"1.3.6.1.4.1.34380.1.1.013": "x"}, "extensions[1.3.6.1.4.1.34380.1.1.013]", "dotted OID"},
		"huge part":     {map[string]string{"1.3.6.1.4.1.34380.1.1.4294967296": "x"}, "extensions[1.3.6.1.4.1.34380.1.1.4294967296]", "dotted OID"},
		"twice":         {map[string]string{"pp_uuid": "x", "1.3.6.1.4.1.34380.1.1.1": "y"}, "extensions[pp_uuid]", "twice"},
		"too many":      {many, "extensions", "at most 64, are 65"},
		"very long OID": {map[string]string{strings.Repeat("1.", 500) + "1": "x"}, `extensions["` + strings.Repeat("1.", 40) + `..."]`, "dotted OID"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ca.ParseExtensions(test.values)
			checkInvalid(t, err, test.field, test.rule)
		})
	}
}

func TestCheckRequest(t *testing.T) {
	good := ca.Request{Certname: certname, DNSAltNames: []string{"a.example.com"}, TTL: time.Hour}
	if err := ca.CheckRequest(good); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change      func(*ca.Request)
		field, rule string
	}{
		"certname":   {func(r *ca.Request) { r.Certname = "../x" }, "certname", "labels"},
		"wildcard":   {func(r *ca.Request) { r.DNSAltNames = []string{"a", "*.b"} }, "dns_alt_names[1]", "wildcards"},
		"many names": {func(r *ca.Request) { r.DNSAltNames = make([]string, 10_000) }, "dns_alt_names", "at most 100 names, are 10000"},
		"short ttl":  {func(r *ca.Request) { r.TTL = time.Second }, "ttl", "at least 1m, is 1s"},
		"negative":   {func(r *ca.Request) { r.TTL = -time.Hour }, "ttl", "at least"},
		"long ttl":   {func(r *ca.Request) { r.TTL = 1 << 62 }, "ttl", "at most"},
		"extension":  {func(r *ca.Request) { r.Extensions = []ca.Extension{{ID: []int{2, 5, 29, 17}, Value: "x"}} }, "extensions[2.5.29.17]", "must be below"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := good
			test.change(&r)
			checkInvalid(t, ca.CheckRequest(r), test.field, test.rule)
		})
	}
}

func TestCleanDNSAltNames(t *testing.T) {
	got := ca.CleanDNSAltNames(certname, []string{"b", string(certname), "a", "b"})
	if want := []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLeafTTL(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 500, time.UTC)
	issuer := &x509.Certificate{NotAfter: now.Add(48 * time.Hour).Truncate(time.Second)}
	r := ca.Request{Certname: certname, Serial: "000A", Key: rsaKey()}
	for ttl, want := range map[time.Duration]time.Time{
		0:              issuer.NotAfter,
		time.Hour:      now.Truncate(time.Second).Add(time.Hour),
		48 * time.Hour: issuer.NotAfter,
	} {
		r.TTL = ttl
		leaf, err := ca.Leaf(r, now, issuer)
		if err != nil || !leaf.NotAfter.Equal(want) {
			t.Errorf("TTL %v: %v, %v; want until %v", ttl, leaf, err, want)
		}
	}
	r.TTL = 49 * time.Hour
	_, err := ca.Leaf(r, now, issuer)
	checkInvalid(t, err, "ttl", "beyond the CA's own end at 2026-11-25T12:00:00Z")
	r.TTL = 0
	if _, err := ca.Leaf(r, issuer.NotAfter, issuer); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("after the CA's end: %v", err)
	}
	r.Serial = "0000"
	if _, err := ca.Leaf(r, now, issuer); err == nil {
		t.Error("a serial of zero was taken")
	}
}

// TestLeafLikePuppetServer issues from the CSRs that a real Puppet Server got,
// and compares with what it issued, extension by extension.
func TestLeafLikePuppetServer(t *testing.T) {
	issuer := parseCertificate(t, "directory/testdata/puppetserver/ca_crt.pem")
	for _, name := range []string{"web1", "web2"} {
		t.Run(name, func(t *testing.T) {
			theirs := parseCertificate(t, "testdata/"+name+".crt.pem")
			data, err := os.ReadFile("testdata/" + name + ".csr.pem")
			if err != nil {
				t.Fatal(err)
			}
			r := ca.Request{
				Certname: node.Certname(name + ".example.com"), Serial: node.SerialOf(theirs.SerialNumber), TTL: 24 * time.Hour,
				DNSAltNames: []string{"www.example.com"},
				Extensions:  slices.DeleteFunc(ca.Extensions(theirs), func(e ca.Extension) bool { return !e.GrantsAuthorization() }),
			}
			if name == "web2" {
				r.DNSAltNames = nil
			}
			csr, err := ca.ParseCSR(data, r.Certname)
			if err != nil {
				t.Fatal(err)
			}
			if r, err = r.WithCSR(csr); err != nil {
				t.Fatal(err)
			}
			compareLeaves(t, issue(t, r, theirs.NotBefore.Add(ca.Backdate), issuer), theirs)
		})
	}
}

// compareLeaves allows for the differences that Leaf names, and for the order of names.
func compareLeaves(t *testing.T, ours, theirs *x509.Certificate) {
	t.Helper()
	if !bytes.Equal(ours.RawSubject, theirs.RawSubject) || !bytes.Equal(ours.RawIssuer, theirs.RawIssuer) ||
		!bytes.Equal(ours.RawSubjectPublicKeyInfo, theirs.RawSubjectPublicKeyInfo) {
		t.Error("subject, issuer or key differ")
	}
	if !ours.NotBefore.Equal(theirs.NotBefore) || !ours.NotAfter.Equal(theirs.NotAfter) {
		t.Errorf("valid from %v to %v, want %v to %v", ours.NotBefore, ours.NotAfter, theirs.NotBefore, theirs.NotAfter)
	}
	if len(ours.Extensions) != len(theirs.Extensions) {
		t.Errorf("%d extensions, want %d", len(ours.Extensions), len(theirs.Extensions))
	}
	for _, want := range theirs.Extensions {
		switch id := want.Id.String(); id {
		case "2.5.29.17": // subject alternative name: another order
			if got := slices.Sorted(slices.Values(ours.DNSNames)); !slices.Equal(got, slices.Sorted(slices.Values(theirs.DNSNames))) {
				t.Errorf("names %q, want %q", got, theirs.DNSNames)
			}
			continue
		case "2.5.29.35": // authority key identifier: the key identifier alone
			if !bytes.Equal(ours.AuthorityKeyId, theirs.AuthorityKeyId) {
				t.Errorf("authority key identifier %x, want %x", ours.AuthorityKeyId, theirs.AuthorityKeyId)
			}
			continue
		case "2.5.29.15": // key usage: no key encipherment for an EC key
			if ours.PublicKeyAlgorithm == x509.ECDSA {
				continue
			}
		}
		i := slices.IndexFunc(ours.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(want.Id) })
		if i < 0 || ours.Extensions[i].Critical != want.Critical || !bytes.Equal(ours.Extensions[i].Value, want.Value) {
			t.Errorf("extension %s is not as Puppet Server has it, critical %v, % x", want.Id, want.Critical, want.Value)
		}
	}
}

// issue signs a leaf in the name of issuer, with a key of the test's.
func issue(t *testing.T, r ca.Request, now time.Time, issuer *x509.Certificate) *x509.Certificate {
	t.Helper()
	template, err := ca.Leaf(r, now, issuer)
	if err != nil {
		t.Fatal(err)
	}
	parent := *issuer
	parent.PublicKey = rsaKey().Public()
	der, err := x509.CreateCertificate(rand.Reader, template, &parent, r.PublicKey(), rsaKey())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func parseCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
