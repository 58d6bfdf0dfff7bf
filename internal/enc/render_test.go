package enc

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/espm-project/espm/internal/node"
)

var update = flag.Bool("update", false, "write the golden files anew")

// testdata/NAME.json is a classification as the API takes it, NAME.golden what Puppet is told.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			c := parse[node.Classification](t, string(read(t, input)))
			if err := (&node.Node{Certname: "web01", Classification: c}).Validate(); err != nil {
				t.Fatal(err)
			}
			got := Render(c)
			golden := strings.TrimSuffix(input, ".json") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := read(t, golden); string(got) != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			checkRendered(t, c)
		})
	}
}

// "{}" and a blank answer are something else to Puppet than a node with no classes.
func TestNothingIsEmpty(t *testing.T) {
	if got := string(Render(node.Classification{})); got != Empty {
		t.Errorf("got %q, want %q", got, Empty)
	}
}

func TestRenderIsDeterministic(t *testing.T) {
	c := parse[node.Classification](t, string(read(t, "testdata/keys.json")))
	c.Classes = map[string]map[string]any{"b": c.Parameters, "a": nil, "c": {"y": nil, "x": nil}}
	want := string(Render(c))
	for range 50 {
		if got := string(Render(c)); got != want {
			t.Fatalf("got\n%s\nthen\n%s", want, got)
		}
	}
}

// The smallest classes and parameters have the most around them.
func TestSizeIsAnUpperBound(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		c := node.Classification{Environment: "production", Classes: map[string]map[string]any{}, Parameters: map[string]any{}}
		for range n % 40 {
			c.Classes[name(r)] = nil
			c.Classes[name(r)] = map[string]any{name(r): randomValue(r, 4), name(r): nil}
			c.Parameters[name(r)] = randomValue(r, 4)
		}
		checkSize(t, c)
	}
	many := node.Classification{Classes: map[string]map[string]any{}}
	for i := range 100_000 {
		many.Classes["c"+fmt.Sprint(i)] = nil
	}
	checkSize(t, many)
}

func name(r *rand.Rand) string { return string(rune('a'+r.IntN(26))) + fmt.Sprint(r.IntN(50)) }

func randomValue(r *rand.Rand, depth int) any {
	switch k := r.IntN(8); {
	case k == 0 && depth > 0:
		l := make([]any, r.IntN(4))
		for i := range l {
			l[i] = randomValue(r, depth-1)
		}
		return l
	case k == 1 && depth > 0:
		m := map[string]any{}
		for range r.IntN(4) {
			m[randomText(r)] = randomValue(r, depth-1)
		}
		return m
	case k == 2:
		return randomNumber(r)
	case k == 3:
		return nil
	case k == 4:
		return r.IntN(2) == 0
	default:
		return randomText(r)
	}
}

// What espm renders says the same to parsers of YAML 1.2 and 1.1 as it was given: any
// key, any text, any number. Seeds: testdata/fuzz.
func FuzzRender(f *testing.F) {
	f.Fuzz(func(t *testing.T, key, text, number string) {
		c := node.Classification{Parameters: map[string]any{
			"text": text, "number": json.Number(number), "key": map[string]any{key: text, "z": nil},
			"list": []any{text, []any{json.Number(number), text}, map[string]any{key: map[string]any{key: true}}},
		}}
		c.Classes = map[string]map[string]any{"c": c.Parameters, "d": nil}
		if (&node.Node{Certname: "web01", Classification: c}).Validate() == nil {
			checkRendered(t, c)
		}
	})
}

// The same for what the store has as JSON.
func FuzzRenderJSON(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		var c node.Classification
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		if dec.Decode(&c) != nil || (&node.Node{Certname: "web01", Classification: c}).Validate() != nil {
			return
		}
		checkRendered(t, c)
	})
}

func checkSize(t *testing.T, c node.Classification) {
	t.Helper()
	if is, bound := utf8.RuneCount(Render(c)), c.Size(); is > bound {
		t.Errorf("%d characters, but Size says at most %d:\n%.2000s", is, bound, Render(c))
	}
}

func checkRendered(t *testing.T, c node.Classification) {
	t.Helper()
	checkSize(t, c)
	text := Render(c)
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want := map[string]any{"classes": map[string]any{}}
	for name, params := range c.Classes {
		want["classes"].(map[string]any)[name] = params
	}
	if c.Environment != "" {
		want["environment"] = c.Environment
	}
	if len(c.Parameters) > 0 {
		want["parameters"] = c.Parameters
	}
	if err := same(doc.Content[0], want); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	checkYAML11(t, text, want)
}

// same compares a YAML node with a value as the store has it.
func same(n *yaml.Node, want any) error {
	switch want := want.(type) {
	case map[string]any:
		if n.Kind != yaml.MappingNode || len(n.Content) != 2*len(want) {
			return fmt.Errorf("%q: got %s with %d nodes, want a map of %d", n.Value, n.Tag, len(n.Content), len(want))
		}
		for i := 0; i < len(n.Content); i += 2 {
			v, ok := want[n.Content[i].Value]
			if !ok || n.Content[i].Tag != "!!str" {
				return fmt.Errorf("unexpected key %s %q", n.Content[i].Tag, n.Content[i].Value)
			}
			if err := same(n.Content[i+1], v); err != nil {
				return fmt.Errorf("[%q]: %w", n.Content[i].Value, err)
			}
		}
		return nil
	case []any:
		if n.Kind != yaml.SequenceNode || len(n.Content) != len(want) {
			return fmt.Errorf("%q: got %s with %d nodes, want a list of %d", n.Value, n.Tag, len(n.Content), len(want))
		}
		for i, v := range want {
			if err := same(n.Content[i], v); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	}
	tag, ok := "!!str", false
	switch want := want.(type) {
	case nil:
		tag, ok = "!!null", true
	case bool:
		tag, ok = "!!bool", n.Value == fmt.Sprint(want)
	case string:
		ok = n.Value == want
	case json.Number:
		tag, ok = numberTag(want), sameNumber(n.Value, string(want))
		if n.Tag == "!!float" && tag == "!!int" { // this parser knows no integers of more than 64 bits
			tag = n.Tag
		}
	}
	if n.Tag != tag || !ok {
		return fmt.Errorf("got %s %q, want %s %q", n.Tag, n.Value, tag, want)
	}
	return nil
}

func numberTag(n json.Number) string {
	if strings.ContainsAny(string(n), ".eE") {
		return "!!float"
	}
	return "!!int"
}

// sameNumber: integers to the last digit, others as the nearest double.
func sameNumber(got, want string) bool {
	if i, ok := new(big.Int).SetString(want, 10); ok {
		g, ok := new(big.Int).SetString(got, 10)
		return ok && g.Cmp(i) == 0
	}
	g, err := json.Number(got).Float64()
	w, _ := json.Number(want).Float64()
	return err == nil && g == w
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
