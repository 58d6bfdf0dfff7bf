package node

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Certname is a node's name, as in its certificate's CN: the primary key of everything.
type Certname string

// Limits of names and values. Sizes are upper bounds in code points of rendered YAML. Puppet refuses an ENC answer of
// more than 3,145,728 code points. The limits of a node and of all its groups together are below that.
const (
	maxCertname   = 64  // RFC 5280 ub-common-name, which OpenSSL enforces
	maxLabel      = 63  // RFC 1035
	maxName       = 255 // also of a key inside a value: YAML takes keys of up to 1024 characters, escapes included
	maxGroups     = 32
	maxLabels     = 64
	maxDepth      = 32
	maxNodeSize   = 1_000_000
	MaxGroupsSize = 2_000_000 // of all groups that one node inherits, directly or not
)

// ParseCertname checks a certname by Puppet's rules (lower case; labels of
// [a-z0-9_-] that don't end in "-"; no "*", "/" or "..") and RFC 5280's
// length of a common name. The error is an *InvalidError on field "certname".
func ParseCertname(s string) (Certname, error) {
	var c checks
	c.certname("certname", s)
	return Certname(s), c.err()
}

// CheckDNSName checks a subject alternative name: a certname's rules, 253 bytes.
func CheckDNSName(field, s string) error {
	var c checks
	c.dnsName(field, s, 253)
	if IsAddress(s) {
		c.add(field, "%s: is not a DNS name: its last label is a number", clip(s))
	}
	return c.err()
}

// IsAddress reports whether clients read a name as an IPv4 address, as its last label is a decimal or hexadecimal number:
// https://url.spec.whatwg.org/#ends-in-a-number-checker
func IsAddress(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}

// CheckGroupName checks the name of a group.
func CheckGroupName(field, s string) error {
	var c checks
	c.groupName(field, s)
	return c.err()
}

func (c *checks) certname(field, s string) {
	if s == "ca" {
		c.add(field, `"ca" is the name under which Puppet keeps and serves the CA's own certificate`)
		return
	}
	c.dnsName(field, s, maxCertname)
}

func (c *checks) dnsName(field, s string, limit int) {
	switch {
	case s == "":
		c.add(field, "must not be empty")
	case len(s) > limit:
		c.add(field, "at most %d bytes, is %d", limit, len(s))
	case strings.Contains(s, "*"):
		c.add(field, "%q: wildcards are not allowed", s)
	case strings.ToLower(s) != s:
		c.add(field, "%q: must be lower case", s)
	default:
		for label := range strings.SplitSeq(s, ".") {
			if rule := labelRule(label); rule != "" {
				c.add(field, "%q: %s", s, rule)
				return
			}
		}
	}
}

func labelRule(label string) string {
	if label == "" {
		return `labels must not be empty (no leading, trailing or double ".")`
	}
	if len(label) > maxLabel {
		return fmt.Sprintf("a label has at most %d bytes, one has %d", maxLabel, len(label))
	}
	for _, r := range label {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '-' {
			return fmt.Sprintf("labels hold a-z, 0-9, _ and - only, not %q", r)
		}
	}
	if strings.HasSuffix(label, "-") {
		return `a label must not end in "-"`
	}
	if strings.HasPrefix(label, "-") {
		return `a label must not start with "-"`
	}
	return ""
}

// spelling is the rule of a name: one character of first, then any of rest. It is no regular expression, as compiling
// one would take espm-enc longer than all its other work.
type spelling struct {
	first, rest charset
	text        string // the rule as a regular expression, for people
}

// The spelling of names. Puppet accepts class and parameter names in upper case, but ignores their values. So espm
// refuses them.
var (
	environmentName = spelling{lower | digit | underscore, lower | digit | underscore, "[a-z0-9_]+"}
	className       = spelling{lower, lower | digit | underscore, "[a-z][a-z0-9_]*"}
	variableName    = spelling{lower, lower | upper | digit | underscore, "[a-z][a-zA-Z0-9_]*"}
	groupName       = spelling{lower | digit, lower | digit | underscore | dotDash, "[a-z0-9][a-z0-9_.-]*"}
	labelKey        = spelling{lower | upper | digit, lower | upper | digit | underscore | dotDash | slash, "[A-Za-z0-9][A-Za-z0-9_./-]*"}
	labelValue      = spelling{labelValueChars, labelValueChars, "[A-Za-z0-9_.:@+-]*"}
)

type charset uint8

const (
	lower charset = 1 << iota
	upper
	digit
	underscore
	dotDash // . -
	slash
	signs // : @ +
)

const labelValueChars = lower | upper | digit | underscore | dotDash | signs

func (s spelling) match(text string) bool {
	if text == "" {
		return false
	}
	for i := range len(text) {
		want := s.rest
		if i == 0 {
			want = s.first
		}
		if want&classOf(text[i]) == 0 {
			return false
		}
	}
	return true
}

func (s spelling) String() string { return s.text }

func classOf(b byte) charset {
	switch {
	case b >= 'a' && b <= 'z':
		return lower
	case b >= 'A' && b <= 'Z':
		return upper
	case b >= '0' && b <= '9':
		return digit
	case b == '_':
		return underscore
	case b == '.' || b == '-':
		return dotDash
	case b == '/':
		return slash
	case b == ':' || b == '@' || b == '+':
		return signs
	}
	return 0
}

// isClassName accepts "ntp" and "ntp::server".
func isClassName(s string) bool {
	for part := range strings.SplitSeq(s, "::") {
		if !className.match(part) {
			return false
		}
	}
	return len(s) <= maxName
}

// reserved are top-scope names that Puppet sets itself. If an ENC sets them, Puppet fails or ignores the value.
var reserved = []string{"environment", "facts", "name", "server_facts", "title", "trusted"}

// frame is an upper bound of the text around the classes and parameters of a rendered classification: "---", the names
// of the sections and the quotes of the environment.
const frame = 64

// classification checks one and returns an upper bound of its size as YAML, in code points.
func (c *checks) classification(cl Classification) int {
	if e := cl.Environment; e != "" && (len(e) > maxName || !environmentName.match(e)) {
		c.add("environment", "%s: must match %s and have at most %d bytes", clip(e), environmentName, maxName)
	}
	sensitive := c.sensitive(cl)
	size := frame + len(cl.Environment)
	for class, params := range cl.Classes {
		field := "classes[" + clip(class) + "]"
		if !isClassName(class) {
			c.add(field, `must be a class name in lower case, such as "ntp" or "ntp::server", of at most %d bytes`, maxName)
			continue
		}
		size += len(class) + 10
		for name, v := range params {
			if len(name) > maxName || !variableName.match(name) {
				c.add(field+"."+clip(name), "must match %s and have at most %d bytes", variableName, maxName)
				continue
			}
			s := Setting{class, name}
			size += len(name) + 8 + c.setting(s, v, 3, sensitive[s])
		}
	}
	for name, v := range cl.Parameters {
		field := "parameters[" + clip(name) + "]"
		switch {
		case slices.Contains(reserved, name):
			c.add(field, "the name is reserved by Puppet")
			continue
		case len(name) > maxName || !variableName.match(name):
			c.add(field, "must match %s and have at most %d bytes", variableName, maxName)
			continue
		}
		s := Setting{Name: name}
		size += len(name) + 8 + c.setting(s, v, 2, sensitive[s])
	}
	return size
}

func (c *checks) size(cl Classification, limit int) {
	if size := c.classification(cl); size > limit {
		c.add("classification", "classes and parameters have at most %d characters as YAML, these have up to %d", limit, size)
	}
}

// value checks one parameter value and returns an upper bound of its size as
// YAML, in code points.
func (c *checks) value(field string, v any, depth int) int {
	if depth > maxDepth {
		c.add(field, "nested more than %d deep", maxDepth)
		return 0
	}
	indent := 2*depth + 4
	switch v := v.(type) {
	case nil, bool:
		return 8
	case json.Number:
		if !validNumber(v) {
			c.add(field, "%s is not a number JSON and YAML agree on", clip(string(v)))
		}
		return len(v) + 8
	case string:
		return c.text(field, v)
	case []any:
		size := 4
		for i, e := range v {
			size += indent + c.value(fmt.Sprintf("%s[%d]", field, i), e, depth+1)
		}
		return size
	case map[string]any:
		size := 4
		for k, e := range v {
			if k == "<<" {
				c.add(field, `the key "<<" means a merge in YAML and is not allowed`)
			}
			if len(k) > maxName {
				c.add(field, "the key %s is too long: at most %d bytes, has %d", clip(k), maxName, len(k))
			}
			size += indent + c.text(field, k) + c.value(field+"."+clip(k), e, depth+1)
		}
		return size
	default:
		c.add(field, "values are null, boolean, number, string, list or map, not %T", v)
		return 0
	}
}

func (c *checks) text(field, s string) int {
	if !utf8.ValidString(s) {
		c.add(field, "strings must be valid UTF-8")
	}
	if strings.ContainsRune(s, 0) {
		c.add(field, "strings must not hold NUL, which PuppetDB can't store")
	}
	size := 4
	for _, r := range s {
		if r >= 0x20 && r < 0x7f && r != '"' && r != '\\' {
			size++
		} else {
			size += 10 // the longest escape is \UXXXXXXXX
		}
	}
	return size
}

// validNumber accepts JSON's spelling, finite, of at most 40 bytes.
func validNumber(n json.Number) bool {
	if len(n) > 40 || !json.Valid([]byte(n)) {
		return false
	}
	_, err := n.Float64()
	return err == nil
}

func (c *checks) groupName(field, s string) {
	if len(s) > 64 || !groupName.match(s) {
		c.add(field, "%s: a group name must match %s and have at most 64 bytes", clip(s), groupName)
	}
}

func (c *checks) groupNames(field string, names []string) {
	if len(names) > maxGroups {
		c.add(field, "at most %d groups, are %d", maxGroups, len(names))
	}
	seen := make(map[string]bool, len(names))
	for i, name := range names {
		c.groupName(fmt.Sprintf("%s[%d]", field, i), name)
		if seen[name] {
			c.add(fmt.Sprintf("%s[%d]", field, i), "group %s is named twice", clip(name))
		}
		seen[name] = true
	}
}

func (c *checks) labels(labels map[string]string) {
	if len(labels) > maxLabels {
		c.add("labels", "at most %d labels, are %d", maxLabels, len(labels))
	}
	for k, v := range labels {
		field := "labels[" + clip(k) + "]"
		if len(k) > 63 || !labelKey.match(k) {
			c.add(field, "a label's key must match %s and have at most 63 bytes", labelKey)
		}
		if v != "" && (len(v) > 128 || !labelValue.match(v)) {
			c.add(field, "%s: a label's value must match %s and have at most 128 bytes", clip(v), labelValue)
		}
	}
}

// clip quotes s for an error message, shortened if it is long.
func clip(s string) string {
	if len(s) <= MaxQuoted && isClassName(s) {
		return s
	}
	return Quote(s)
}

// MaxQuoted is how many bytes of a caller's text a message repeats.
const MaxQuoted = 80

// Quote quotes a text for a message, shortened if it is long.
func Quote(s string) string { return strconv.Quote(Shorten(s, MaxQuoted)) }

// Shorten cuts a text to a number of bytes, and the dots that say so.
func Shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// Size returns an upper bound of the classification's size as YAML, in code points.
func (cl Classification) Size() int {
	var c checks
	return c.classification(cl)
}
