package enc

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/espm-project/espm/internal/node"
)

// Empty is the answer for a node without classes: site.pp still applies to it.
const Empty = "---\nclasses: {}\n"

// Render writes a classification as the YAML that Puppet's external node
// terminus reads. The order is fixed. Every string is double-quoted: Ruby's loader reads YAML 1.1, where an
// unquoted yes, 0755, 12:30:45, 1,000, :foo or date is not a string.
func Render(c node.Classification) []byte {
	var b strings.Builder
	b.WriteString("---\n")
	if c.Environment != "" {
		b.WriteString("environment: ")
		quote(&b, c.Environment)
		b.WriteByte('\n')
	}
	classes := make(map[string]any, len(c.Classes))
	for name, params := range c.Classes {
		classes[name] = params
	}
	b.WriteString("classes:")
	writeMap(&b, classes, 1)
	if len(c.Parameters) > 0 {
		b.WriteString("parameters:")
		writeMap(&b, c.Parameters, 1)
	}
	return []byte(b.String())
}

// write writes a value after a key or a dash, and the end of the line.
func write(b *strings.Builder, v any, depth int) {
	switch v := v.(type) {
	case map[string]any:
		writeMap(b, v, depth)
	case []any:
		writeList(b, v, depth)
	default:
		b.WriteByte(' ')
		scalar(b, v)
		b.WriteByte('\n')
	}
}

func writeMap(b *strings.Builder, m map[string]any, depth int) {
	if len(m) == 0 {
		b.WriteString(" {}\n")
		return
	}
	b.WriteByte('\n')
	for _, k := range slices.Sorted(maps.Keys(m)) {
		indent(b, depth)
		quote(b, k)
		b.WriteByte(':')
		write(b, m[k], depth+1)
	}
}

func writeList(b *strings.Builder, l []any, depth int) {
	if len(l) == 0 {
		b.WriteString(" []\n")
		return
	}
	b.WriteByte('\n')
	for _, v := range l {
		indent(b, depth)
		b.WriteByte('-')
		write(b, v, depth+1)
	}
}

func indent(b *strings.Builder, depth int) {
	for range depth {
		b.WriteString("  ")
	}
}

func scalar(b *strings.Builder, v any) {
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case json.Number:
		number(b, v)
	case string:
		quote(b, v)
	}
}

// number writes a number that Ruby's loader reads as the same number: floats need a point, and a sign in the
// exponent.
func number(b *strings.Builder, n json.Number) {
	s := string(n)
	if !strings.ContainsAny(s, ".eE") {
		b.WriteString(s)
		return
	}
	f, _ := n.Float64() // validated when it was written
	s = strconv.FormatFloat(f, 'g', -1, 64)
	mantissa, exponent, _ := strings.Cut(s, "e")
	if !strings.Contains(mantissa, ".") {
		mantissa += ".0"
	}
	b.WriteString(mantissa)
	if exponent != "" {
		b.WriteString("e" + exponent)
	}
}

// quote writes a double-quoted YAML string. It escapes all characters that YAML does not call printable, and 0x7F,
// on which Ruby's loader fails.
func quote(b *strings.Builder, s string) {
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r >= 0x20 && r < 0x7f, printable(r):
			b.WriteRune(r)
		case r < 0x100:
			escape(b, `\x`, r, 2)
		case r < 0x10000:
			escape(b, `\u`, r, 4)
		default:
			escape(b, `\U`, r, 8)
		}
	}
	b.WriteByte('"')
}

// printable reports whether r is c-printable of YAML 1.1, above ASCII. The line and paragraph separators, which
// YAML reads as line breaks, and the byte order mark are not.
func printable(r rune) bool {
	return r >= 0xa0 && r != 0x2028 && r != 0x2029 && r != 0xfeff && r != 0xfffe && r != 0xffff && r != utf8.RuneError
}

func escape(b *strings.Builder, prefix string, r rune, digits int) {
	hex := strconv.FormatInt(int64(r), 16)
	b.WriteString(prefix)
	b.WriteString(strings.Repeat("0", digits-len(hex)))
	b.WriteString(hex)
}
