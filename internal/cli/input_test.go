package cli

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// What is YAML here is what JSON with the same fields says to the API.
func TestParseClassification(t *testing.T) {
	for in, want := range map[string]string{
		"{}": `{}`,
		"environment: production\nclasses: {ntp: {}}\n":                                                              `{"environment": "production", "classes": {"ntp": {}}}`,
		"environment:\nclasses:\nparameters: null\n":                                                                 `{}`,
		"classes: {a: {parameters: null}, b: {parameters: {x: null}}}":                                               `{"classes": {"a": {}, "b": {"parameters": {"x": null}}}}`,
		"parameters:\n  i: 1\n  f: -1.5e3\n  t: true\n  s: '0755'\n  n:\n  l: [1, {a: [b]}]\n  b: |\n    x\n    y\n": `{"parameters": {"i": 1, "f": -1500, "t": true, "s": "0755", "n": null, "l": [1, {"a": ["b"]}], "b": "x\ny\n"}}`,
		`{"parameters": {"a": "b\u00e9"}, "sensitive": ["parameters[a]"]}`:                                           `{"parameters": {"a": "bé"}, "sensitive": ["parameters[a]"]}`,
	} {
		var w espmv1.Classification
		if err := protojson.Unmarshal([]byte(want), &w); err != nil {
			t.Fatal(err)
		}
		got, err := parseClassification([]byte(in))
		if err != nil || !proto.Equal(got, &w) {
			t.Errorf("%s: got %v, %v; want %v", in, got, err, &w)
		}
	}
}

// Whatever is broken or put in the wrong place, an error has nothing of a value.
func FuzzParseClassification(f *testing.F) {
	const secret = "hunter2"
	for _, shape := range []string{"@", "- @", "classes: @", "classes: {a: @}", "parameters: {a:@}", "parameters: *@", "a: !!int @", "environment: [@]", "\"@", "? @", "%@", "&@ a: 1", "!!binary @", "parameters:\n  a: @\n b: 1"} {
		f.Add(shape)
	}
	f.Fuzz(func(t *testing.T, shape string) {
		in := strings.ReplaceAll(shape, "@", secret)
		_, err := parseClassification([]byte(in))
		// A key is a field's name, and named.
		if err != nil && strings.Contains(err.Error(), secret) && !strings.Contains(err.Error(), "unknown field") && !strings.Contains(err.Error(), "["+secret) {
			t.Errorf("%q: %v", in, err)
		}
	})
}
