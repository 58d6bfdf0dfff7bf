package node

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// Certnames that Puppet takes.
func TestParseCertname(t *testing.T) {
	for _, name := range []string{
		"web01.example.com",
		"web01",
		"a",
		"0",
		"10.0.0.1",
		"i-0abcdef1234567890",
		"under_score.example.com",
		"_leading.example.com",
		"trailing_.example.com",
		"a--b.example.com",
		"xn--kln-sna.example.com",
		"ca.example.com",
		strings.Repeat("a", 63),
		strings.Repeat("a", 62) + ".b", // 64 bytes in all
	} {
		got, err := ParseCertname(name)
		if err != nil || string(got) != name {
			t.Errorf("%q: got %q, %v", name, got, err)
		}
	}
}

// Certnames that are refused, each with the rule that it breaks.
func TestParseCertnameRules(t *testing.T) {
	for _, test := range []struct{ name, rule string }{
		{"", "must not be empty"},
		{".", "labels must not be empty"},
		{"..", "labels must not be empty"},
		{"../x", "labels must not be empty"},
		{"a..b", "labels must not be empty"},
		{".a", "labels must not be empty"},
		{"a.", "labels must not be empty"},
		{"x/../y", "not '/'"},
		{"a/b", "not '/'"},
		{"/etc/passwd", "not '/'"},
		{`a\b`, `not '\\'`},
		{"Web01.example.com", "must be lower case"},
		{"KÖLN", "must be lower case"},
		{"köln.example.com", "not 'ö'"},
		{"*", "wildcards are not allowed"},
		{"*.example.com", "wildcards are not allowed"},
		{"web*.example.com", "wildcards are not allowed"},
		{"a b", "not ' '"},
		{" a", "not ' '"},
		{"a\n", `not '\n'`},
		{"a\x00b", `not '\x00'`},
		{"a:8140", "not ':'"},
		{"user@host", "not '@'"},
		{"--help", `must not start with "-"`},
		{"-a.example.com", `must not start with "-"`},
		{"a.-b", `must not start with "-"`},
		{"a-", `must not end in "-"`},
		{"a-.example.com", `must not end in "-"`},
		{"a.example.com-", `must not end in "-"`},
		{strings.Repeat("a", 64), "a label has at most 63 bytes, one has 64"},
		{strings.Repeat("a", 62) + ".bc", "at most 64 bytes, is 65"},
		{strings.Repeat("a", 300), "at most 64 bytes, is 300"},
		{strings.Repeat("a", 300) + ".example.com", "at most 64 bytes, is 312"},
		{"ca", "the CA's own certificate"}, // GET certificate/ca, ssl/certs/ca.pem
	} {
		_, err := ParseCertname(test.name)
		expectViolation(t, test.name, err, "certname", test.rule)
	}
}

func TestCheckDNSName(t *testing.T) {
	long := strings.Repeat("a.", 126) + "a" // 253 bytes
	for _, name := range []string{"puppet", "web01.example.com", "ca", long} {
		if err := CheckDNSName("dns_alt_names[0]", name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, test := range []struct{ name, rule string }{
		{"", "must not be empty"},
		{"*.example.com", "wildcards are not allowed"},
		{"Puppet", "must be lower case"},
		{long + "b.c", "at most 253 bytes, is 256"},
		{"192.0.2.1", "is not a DNS name: its last label is a number"},
		{"0x7f000001", "is not a DNS name: its last label is a number"},
	} {
		expectViolation(t, test.name, CheckDNSName("dns_alt_names[0]", test.name), "dns_alt_names[0]", test.rule)
	}
}

// A certname that is accepted is safe wherever a name goes: in a path, in a
// URL, as the last word of a command. Seeds: testdata/fuzz.
func FuzzParseCertname(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		name, err := ParseCertname(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%q: %v is not ErrInvalid", s, err)
			}
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("%q: the reason %q is no line", s, err)
			}
			return
		}
		got := string(name)
		switch {
		case got != s:
			t.Errorf("%q became %q", s, got)
		case len(got) == 0 || len(got) > 64:
			t.Errorf("%q has %d bytes", got, len(got))
		case strings.ToLower(got) != got:
			t.Errorf("%q is not lower case", got)
		case filepath.Base(got) != got || got == "." || got == ".." || !filepath.IsLocal(got):
			t.Errorf("%q is no path element", got)
		case strings.HasPrefix(got, "-"):
			t.Errorf("%q looks like a flag", got)
		case strings.Trim(got, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "":
			t.Errorf("%q has other characters", got)
		}
	})
}

// expectViolation checks that an error is one violation, on that field and of that rule.
func expectViolation(t *testing.T, what string, err error, field, rule string) {
	t.Helper()
	inv, ok := errors.AsType[*InvalidError](err)
	if !ok || !errors.Is(err, ErrInvalid) {
		t.Errorf("%.80q: got error %v, want one on %s: %s", what, err, field, rule)
		return
	}
	if len(inv.Violations) != 1 || inv.Violations[0].Field != field || !strings.Contains(inv.Violations[0].Rule, rule) {
		t.Errorf("%.80q: got %.300q, want one on %s: %s", what, inv.Violations, field, rule)
	}
}
