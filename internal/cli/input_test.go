package cli

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
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
func FuzzParseFile(f *testing.F) {
	const secret = "hunter2"
	for _, shape := range []string{"@", "- @", "classes: @", "classes: {a: @}", "parameters: {a:@}", "parameters: *@", "a: !!int @", "environment: [@]", "\"@", "? @", "%@", "&@ a: 1", "!!binary @", "parameters:\n  a: @\n b: 1",
		"node: {classification: @}", "node: @", "group: {parents: @}", "labels: {a: [@]}", "revision: @", "owner: [@]", "certname: {a: @}"} {
		f.Add(shape)
	}
	f.Fuzz(func(t *testing.T, shape string) {
		in := strings.ReplaceAll(shape, "@", secret)
		var doc yaml.Node
		if yaml.Unmarshal([]byte(in), &doc) == nil && inKey(&doc, secret) {
			return // a key is a field's name, and named
		}
		_, err := parseClassification([]byte(in))
		_, _, nodeErr := parseNode([]byte(in))
		_, groupErr := parseGroup([]byte(in))
		for _, err := range []error{err, nodeErr, groupErr} {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%q: %v", in, err)
			}
		}
	})
}

func inKey(n *yaml.Node, text string) bool {
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && strings.Contains(child.Value, text) || inKey(child, text) {
			return true
		}
	}
	return false
}
