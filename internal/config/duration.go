package config

import (
	"fmt"

	"go.yaml.in/yaml/v3"

	"github.com/espm-project/espm/internal/node"
)

// Duration is a time span. In the file it has a form such as 400d or 12h.
type Duration node.Duration

// UnmarshalYAML implements yaml.Unmarshaler. Errors have the line number.
func (d *Duration) UnmarshalYAML(value *yaml.Node) error {
	parsed, err := node.ParseDuration(value.Value)
	if err != nil || value.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %s is %w", value.Line, node.Quote(value.Value), err)
	}
	*d = Duration(parsed)
	return nil
}

// String implements fmt.Stringer.
func (d Duration) String() string { return node.Duration(d).String() }
