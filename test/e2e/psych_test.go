package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// nasty strings: each is something else, or nothing, in YAML when it is not
// quoted or escaped as it must be.
var nasty = []string{
	"", " ", "~", "null", "Null", "yes", "no", "on", "off", "y", "n", "true", "False",
	"0", "0755", "0o17", "0x1F", "0b11", "1_000", "1,000", "12:30:45", "1e3", "1.5", ".5", "+1", "-0", ".inf", "-.INF", ".nan",
	"2026-01-02", "2026-01-02T03:04:05Z", "2026-01-02 03:04:05 +01:00",
	":foo", ":", ":\"foo\"", "::ntp", "<<", "=", "!ruby/object:Object {}", "!!str x", "&a", "*a", "%YAML 1.1", "@x", "`x`",
	"- a", "-", "? a", "a: b", "a:", "a #b", "#", "---", "--- a", "...", "|", ">", "{}", "[]", "{a: b}", "[a, b]", ",",
	`"`, `'`, `''`, `a"b'c`, `\`, `\n`, `\/`, `a\`, "$x ${y} %{z} #{w}",
	"  leading", "trailing  ", "\ttab\t", "line\nbreak", "\n", "line\n", "cr\r\nlf", "a\rb",
	"a\u007fb", "\u0001\u001b\u001f", "\u0085", "\u00a0", "\u2028", "\u2029", "\ufeff", "a\ufeffb", "\ufffe\uffff", "\ufffd",
	"Köln", "日本", "🦫", "👩‍👩‍👧", "e\u0301", "\U0010ffff",
	strings.Repeat("long ", 4_000),
}

// numbers in JSON's spelling, not all of which YAML 1.1 takes for numbers.
var numbers = []string{
	"0", "-1", "1.5", "0.1", "1.0", "-0.0", "1e3", "1E3", "1e-7", "1.5E+10", "-2e+0", "0.30000000000000004",
	"9007199254740991", "-9007199254740991",
}

// unreadable values would reach Puppet as something else, or make YAML that it
// can't read: they are refused when written.
var unreadable = []struct{ name, value string }{
	{"number past the exact doubles", "9007199254740993"},
	{"number past any double", "1e400"},
	{"merge key", `{"<<": 1}`},
	{"key past YAML's simple keys", `{"` + strings.Repeat("k", 1023) + `": 1}`},
	{"NUL", `"a\u0000b"`},
}

// rubies read YAML as Puppet's exec terminus does. JRuby, with a parser of
// its own, is what a Puppet Server reads the ENC with; MRI is what else reads it.
var rubies = map[string][]string{
	"ruby": {"ruby"},
	"jruby": {"java", "-XX:-UsePerfData", "-XX:TieredStopAtLevel=1", "-Djruby.lib=" + jrubyLib,
		"-cp", puppetJar, "org.jruby.Main"},
}

func TestUnreadableValuesAreRefused(t *testing.T) {
	requirePuppet(t)
	d := initEspm(t, newLab(t, here))
	d.serve(t, "fail", "")
	for i, odd := range unreadable {
		t.Run(odd.name, func(t *testing.T) {
			r := d.try(t, "node", "register", fmt.Sprintf("odd%d.example.com", i), "--parameter", "odd="+odd.value)
			if r.code == 0 || !strings.Contains(r.stderr, "odd") {
				t.Errorf("%.60s: exit %d %q, want a refusal that names the parameter", odd.value, r.code, r.stderr)
			}
		})
	}
}

// Puppet reads the answer of the ENC as exactly the values that were
// registered, whatever they look like.
func TestPuppetReadsWhatWasRegistered(t *testing.T) { onEachHost(t, testYAML) }

func testYAML(t *testing.T, h *host) {
	d := initEspm(t, newLab(t, h))
	d.serve(t, "fail", "")
	want := map[string]any{
		"list":    list(nasty),
		"numbers": jsonNumbers(),
		"nested":  map[string]any{"a": []any{[]any{}, map[string]any{}, []any{"", nil}}, "b": map[string]any{"c": []any{true, false, nil}}},
		"keys":    keys(nasty),
	}
	args := []string{"node", "register", "nasty.example.com", "--environment", "0755", "--class", "motd=" + encode(t, want), "--class", "plain"}
	for name, value := range want {
		args = append(args, "--parameter", name+"="+encode(t, value))
	}
	d.espm(t, args...)

	yaml := d.espm(t, "enc", "nasty.example.com")

	for name, ruby := range rubies {
		t.Run(name, func(t *testing.T) {
			got := d.lab.readYAML(t, ruby, yaml)
			equal(t, "environment", got["environment"], "0755")
			for name, value := range want {
				equal(t, "parameters."+name, dig(got, "parameters", name), value)
				equal(t, "classes.motd."+name, dig(got, "classes", "motd", name), value)
			}
			if plain := dig(got, "classes", "plain"); plain != nil && !reflect.DeepEqual(plain, map[string]any{}) {
				t.Errorf("classes.plain is %v, want a class without parameters", plain)
			}
		})
	}
}

func (l *lab) readYAML(t *testing.T, ruby []string, yaml string) map[string]any {
	t.Helper()
	args := append(slices.Clone(ruby), "-rjson", "-ryaml", "-e",
		"puts JSON.generate(YAML.safe_load(STDIN.read, permitted_classes: [Symbol], aliases: true))")
	cmd := l.Host.command(l.Root, "/", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
	cmd.Stdin = strings.NewReader(yaml)
	r := run(t, 5*time.Minute, cmd)
	if r.code != 0 {
		t.Fatalf("%s can't read the ENC's answer: %s\n%.4000s", ruby[0], r.stderr, yaml)
	}
	decoder := json.NewDecoder(strings.NewReader(r.stdout))
	decoder.UseNumber()
	var value map[string]any
	check(t, decoder.Decode(&value))
	return value
}

func encode(t *testing.T, value any) string {
	t.Helper()
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	check(t, encoder.Encode(value))
	return strings.TrimSuffix(out.String(), "\n")
}

func list(texts []string) []any {
	values := make([]any, len(texts))
	for i, text := range texts {
		values[i] = text
	}
	return values
}

// keys makes every text a key that may be one.
func keys(texts []string) map[string]any {
	values := make(map[string]any)
	for _, text := range texts {
		if text != "<<" && len(text) < 1000 {
			values[text] = text
		}
	}
	return values
}

func jsonNumbers() []any {
	values := make([]any, len(numbers))
	for i, number := range numbers {
		values[i] = json.Number(number)
	}
	return values
}

func dig(value any, path ...string) any {
	for _, key := range path {
		object, _ := value.(map[string]any)
		value = object[key]
	}
	return value
}

// equal compares two JSON values and names every place where they differ.
// Numbers are compared as Puppet holds them: big integers and doubles.
func equal(t *testing.T, path string, got, want any) {
	t.Helper()
	switch want := want.(type) {
	case map[string]any:
		object, ok := got.(map[string]any)
		if !ok || len(object) != len(want) {
			t.Errorf("%s: %d keys, want %d (is %T)", path, len(object), len(want), got)
		}
		for key, value := range want {
			equal(t, fmt.Sprintf("%s[%.40q]", path, key), object[key], value)
		}
	case []any:
		values, ok := got.([]any)
		if !ok || len(values) != len(want) {
			t.Fatalf("%s: %d elements, want %d (is %T)", path, len(values), len(want), got)
		}
		for i, value := range want {
			equal(t, fmt.Sprintf("%s[%d]", path, i), values[i], value)
		}
	case json.Number:
		number, ok := got.(json.Number)
		if !ok || !sameNumber(number, want) {
			t.Errorf("%s: %#v, want the number %s", path, got, want)
		}
	default:
		if got != want {
			t.Errorf("%s: %.80q, want %.80q", path, fmt.Sprint(got), fmt.Sprint(want))
		}
	}
}

func sameNumber(a, b json.Number) bool {
	x, isInt := new(big.Int).SetString(b.String(), 10)
	if isInt {
		y, ok := new(big.Int).SetString(a.String(), 10)
		return ok && x.Cmp(y) == 0
	}
	f, errA := a.Float64()
	g, errB := b.Float64()
	return errA == nil && errB == nil && f == g
}
