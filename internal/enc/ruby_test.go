package enc

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/need"
)

// loadAsPuppet reads YAML as Puppet's exec terminus does.
const loadAsPuppet = `puts JSON.generate(YAML.safe_load(STDIN.read, permitted_classes: [Symbol], aliases: true))`

// Ruby's own loader, of YAML 1.1, takes several thousand nasty strings, keys
// and numbers for what they were registered as.
func TestRubyReadsWhatWasRegistered(t *testing.T) {
	ruby := need.Program(t, "ruby")
	r := rand.New(rand.NewPCG(3, 4))
	texts := corpus(t, r)
	keys := map[string]any{}
	for _, text := range texts {
		if key := text.(string); key != "<<" && len(key) <= 255 {
			keys[key] = key
		}
	}
	c := node.Classification{
		Environment: "0755",
		Classes:     map[string]map[string]any{"yes": nil, "c": {"on": texts[:100], "y": keys}},
		Parameters:  map[string]any{"no": texts, "numbers": numbers(t, r)},
	}
	if err := (&node.Group{Name: "corpus", Classification: c}).Validate(); err != nil {
		t.Fatal(err)
	}

	cmd := exec.CommandContext(t.Context(), ruby, "-ryaml", "-rjson", "-e", loadAsPuppet)
	cmd.Env = append(os.Environ(), "LANG=C.UTF-8", "LC_ALL=C.UTF-8")
	cmd.Stdin = strings.NewReader(string(Render(c)))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ruby: %v: %s", err, stderr.String())
	}

	got := parse[map[string]any](t, string(out))
	classes := map[string]any{"yes": map[string]any{}, "c": c.Classes["c"]}
	equal(t, "", got, map[string]any{"environment": "0755", "classes": classes, "parameters": c.Parameters})
}

// corpus is what testdata has, pairs of it, and random text of the same alphabet.
func corpus(t *testing.T, r *rand.Rand) []any {
	nasty := parse[node.Classification](t, string(read(t, "testdata/strings.json"))).Parameters["strings"].([]any)
	texts := append([]any{}, nasty...)
	for _, a := range nasty {
		for _, b := range []string{" ", "\n", ":", "#", "x"} {
			texts = append(texts, a.(string)+b, b+a.(string))
		}
		texts = append(texts, fmt.Sprint(a, nasty[r.IntN(len(nasty))]))
	}
	for range 3000 {
		texts = append(texts, randomText(r))
	}
	return append(texts, strings.Repeat("long ", 4000), strings.Repeat("\\\"\x01", 500))
}

// randomText is short text of the characters that mean something to YAML.
func randomText(r *rand.Rand) string {
	alphabet := []rune("aAzZ09 _-.:,;#%&*!|>?@`'\"\\/{}[]()<=~$+^\t\n\r\a\b\v\f\x01\x1b\x7f\u0080\u0085\u00a0ö\u2028\u2029\ufeff\ufffd\ufffe\uffff日🦫\U0010ffff")
	text := make([]rune, r.IntN(12))
	for i := range text {
		text[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(text)
}

// numbers is what testdata has, and random ones.
func numbers(t *testing.T, r *rand.Rand) []any {
	all := parse[node.Classification](t, string(read(t, "testdata/numbers.json"))).Parameters["numbers"].([]any)
	for range 2000 {
		all = append(all, randomNumber(r))
	}
	return all
}

func randomNumber(r *rand.Rand) json.Number {
	switch r.IntN(3) {
	case 0:
		return json.Number(fmt.Sprint(r.Int64() >> r.IntN(64)))
	case 1:
		return json.Number(fmt.Sprintf("%de%d", r.IntN(100), r.IntN(600)-300))
	default:
		f := math.Float64frombits(r.Uint64())
		if math.IsNaN(f) || math.IsInf(f, 0) {
			f = 0
		}
		text, _ := json.Marshal(f)
		return json.Number(text)
	}
}

// equal compares two JSON values and names every place where they differ.
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
		if !ok || numberTag(number) != numberTag(want) || !sameNumber(string(number), string(want)) {
			t.Errorf("%s: %#v, want the number %s", path, got, want)
		}
	default:
		if got != want {
			t.Errorf("%s: %.80q, want %.80q", path, fmt.Sprint(got), fmt.Sprint(want))
		}
	}
}
