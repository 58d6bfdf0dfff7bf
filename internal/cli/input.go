package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// input reads files. input reads standard input, "-", at most once.
type input struct{ taken bool }

func (in *input) read(path string) ([]byte, error) {
	if path != "-" {
		return os.ReadFile(path)
	}
	if in.taken {
		return nil, errors.New("standard input can be read only once")
	}
	in.taken = true
	return io.ReadAll(os.Stdin)
}

// parseClassification parses a classification in YAML or JSON, with the field names of the API. Errors
// name the line and the field, but never the value, which may be secret.
func parseClassification(data []byte) (*espmv1.Classification, error) {
	top, err := document(data)
	if err != nil {
		return nil, err
	}
	return classification(top)
}

// document parses a YAML or JSON file.
func document(data []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, notYAML(err)
	}
	if err := plain(&doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return &yaml.Node{Line: 1}, nil // an empty file
	}
	return doc.Content[0], nil
}

func classification(top *yaml.Node) (*espmv1.Classification, error) {
	c := &espmv1.Classification{Classes: map[string]*espmv1.ClassParameters{}}
	return c, fields(top, "", "a map, such as {classes: {ntp: {}}}", map[string]func(*yaml.Node) error{
		"environment": func(n *yaml.Node) error { return decode(n, "environment", "a string", &c.Environment) },
		"sensitive":   func(n *yaml.Node) error { return decode(n, "sensitive", "a list of strings", &c.Sensitive) },
		"parameters":  func(n *yaml.Node) (err error) { c.Parameters, err = values(n, "parameters"); return err },
		"classes": func(n *yaml.Node) error {
			return each(n, "classes", "a map of classes, such as {ntp: {}}", func(name string, n *yaml.Node) error {
				class, path := &espmv1.ClassParameters{}, "classes["+name+"]"
				c.Classes[name] = class
				return fields(n, path, "a map, such as {parameters: {port: 3306}}, or {}", map[string]func(*yaml.Node) error{
					"parameters": func(n *yaml.Node) (err error) { class.Parameters, err = values(n, path+".parameters"); return err },
				})
			})
		},
	})
}

var yamlLine = regexp.MustCompile(`^yaml: (line [0-9]+): `)

// notYAML keeps only the line of a parser's error. The parser's error for an unknown anchor quotes the
// anchor's name, which may be a password that begins with an asterisk.
func notYAML(err error) error {
	at := ""
	if found := yamlLine.FindStringSubmatch(err.Error()); found != nil {
		at = found[1] + ": "
	}
	return errors.New(at + "is not YAML; a string that begins with one of *&!%@`|>{[\"'# must be quoted")
}

func wants(n *yaml.Node, path, shape string) error {
	if path != "" {
		path += ": "
	}
	return fmt.Errorf("line %d: %smust be %s", n.Line, path, shape)
}

// each calls do for each key of a map.
func each(n *yaml.Node, path, shape string, do func(key string, value *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return wants(n, path, shape)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if err := do(n.Content[i].Value, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// fields parses a map that allows only the known keys. A null value counts as a missing key.
func fields(n *yaml.Node, path, shape string, known map[string]func(*yaml.Node) error) error {
	return each(n, path, shape, func(key string, value *yaml.Node) error {
		read, ok := known[key]
		switch {
		case !ok && path == "":
			return fmt.Errorf("line %d: unknown field %q", value.Line, key)
		case !ok:
			return fmt.Errorf("line %d: %s: unknown field %q; wants %s", value.Line, path, key, shape)
		case value.ShortTag() == "!!null":
			return nil
		}
		return read(value)
	})
}

func values(n *yaml.Node, path string) (map[string]*structpb.Value, error) {
	out := map[string]*structpb.Value{}
	return out, each(n, path, "a map of names and values", func(name string, n *yaml.Node) error {
		var v any
		if err := decode(n, path+"["+name+"]", "a value as in JSON", &v); err != nil {
			return err
		}
		value, err := structpb.NewValue(v)
		if err != nil {
			return wants(n, path+"["+name+"]", "a value as in JSON")
		}
		out[name] = value
		return nil
	})
}

// decode is strict: a number is no string. The YAML decoder would convert it.
func decode(n *yaml.Node, path, shape string, to any) error {
	texts := []*yaml.Node{n}
	switch to.(type) {
	case *any:
		texts = nil
	case *[]string:
		if n.Kind != yaml.SequenceNode {
			return wants(n, path, shape)
		}
		texts = n.Content
	}
	for _, text := range texts {
		if text.Kind != yaml.ScalarNode || text.ShortTag() != "!!str" {
			return wants(text, path, shape)
		}
	}
	if n.Decode(to) != nil {
		return wants(n, path, shape)
	}
	return nil
}

// plain refuses values that JSON can't express, and values that YAML 1.1 and 1.2 parse differently.
func plain(n *yaml.Node) error {
	refuse := func(why string) error { return fmt.Errorf("line %d: %s", n.Line, why) }
	switch n.Kind {
	case yaml.AliasNode:
		return refuse("anchors and aliases are not supported")
	case yaml.ScalarNode:
		switch tag := n.ShortTag(); {
		case tag == "!!str" || tag == "!!null" || tag == "!!bool":
		case (tag == "!!int" || tag == "!!float") && json.Valid([]byte(n.Value)):
		default:
			return refuse("not a string, number, boolean or null as in JSON: a string that looks like another thing must be quoted")
		}
	}
	seen := map[string]bool{}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if child.Kind != yaml.ScalarNode || child.ShortTag() != "!!str" {
				return fmt.Errorf("line %d: a key must be a string: quote it", child.Line)
			}
			if seen[child.Value] {
				return fmt.Errorf("line %d: a key is in its map twice", child.Line)
			}
			seen[child.Value] = true
			if value := n.Content[i+1]; n.Style&yaml.FlowStyle != 0 && value.ShortTag() == "!!null" && value.Value == "" {
				// In {token:text}, the whole text is one key, and may be secret. A later error would print
				// it as an unknown field.
				return fmt.Errorf("line %d: a key in {} has no value: write a space after its colon, or null for no value", child.Line)
			}
		}
		if err := plain(child); err != nil {
			return err
		}
	}
	return nil
}

// durationVar adds a flag for a duration. The help shows no default of zero.
func durationVar(f *pflag.FlagSet, d *node.Duration, name, usage string) {
	f.Var(d, name, usage)
	if *d == 0 {
		f.Lookup(name).DefValue = ""
	}
}
