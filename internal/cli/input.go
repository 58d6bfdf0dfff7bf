package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// input reads files, and standard input, once, for "-".
type input struct{ taken bool }

func (in *input) read(path string) ([]byte, error) {
	if path != "-" {
		return os.ReadFile(path)
	}
	if in.taken {
		return nil, errors.New("standard input can be read once only")
	}
	in.taken = true
	return io.ReadAll(os.Stdin)
}

// parseClassification reads a classification in YAML, or JSON, with the fields of the
// API. Errors don't repeat what stands there: it may be secret.
func parseClassification(data []byte) (*espmv1.Classification, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if err := plain(&doc); err != nil {
		return nil, err
	}
	var v map[string]any
	if err := doc.Decode(&v); err != nil || v == nil {
		return nil, errors.New("must be a map, such as {classes: {ntp: {}}}")
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	c := &espmv1.Classification{}
	return c, protojson.Unmarshal(b, c)
}

// plain refuses what JSON can't say, or YAML's versions read in different ways.
func plain(n *yaml.Node) error {
	refuse := func(why string) error { return fmt.Errorf("line %d: %s", n.Line, why) }
	switch n.Kind {
	case yaml.AliasNode:
		return refuse("anchors and aliases are not taken")
	case yaml.ScalarNode:
		switch tag := n.ShortTag(); {
		case tag == "!!str" || tag == "!!null" || tag == "!!bool":
		case (tag == "!!int" || tag == "!!float") && json.Valid([]byte(n.Value)):
		default:
			return refuse("not a string, number, boolean or null as in JSON: a string that looks like another thing must be quoted")
		}
	}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && child.ShortTag() != "!!str" {
			return fmt.Errorf("line %d: a key must be a string: quote it", child.Line)
		}
		if err := plain(child); err != nil {
			return err
		}
	}
	return nil
}
