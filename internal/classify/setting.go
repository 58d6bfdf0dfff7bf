package classify

import (
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// Setting names a value of a classification: the environment, the presence of a class, a class parameter or a
// top-scope parameter.
type Setting struct {
	kind        kind
	class, name string
}

type kind int

const (
	environment kind = iota
	class
	classParameter
	parameter
)

func (s Setting) String() string {
	switch s.kind {
	case environment:
		return "environment"
	case class:
		return "classes[" + s.class + "]"
	case classParameter:
		return "classes[" + s.class + "]." + s.name
	default:
		return "parameters[" + s.name + "]"
	}
}

type settings map[Setting]value

type value struct {
	value     any
	sensitive bool
	source    source
}

// source says where a value comes from: own, or the number of a group, from 1 on.
type source int32

const own source = 0

func flatten(c node.Classification, from source) settings {
	s := settings{}
	if c.Environment != "" {
		s[Setting{kind: environment}] = value{value: c.Environment, source: from}
	}
	for name, params := range c.Classes {
		s[Setting{class, name, ""}] = value{source: from}
		for k, v := range params {
			s[Setting{classParameter, name, k}] = value{value: v, source: from}
		}
	}
	for k, v := range c.Parameters {
		s[Setting{parameter, "", k}] = value{value: v, source: from}
	}
	for _, mark := range c.Sensitive {
		marked, _ := node.ParseSetting(mark) // validated when it was written
		key := Setting{parameter, "", marked.Name}
		if marked.Class != "" {
			key = Setting{classParameter, marked.Class, marked.Name}
		}
		s[key] = value{s[key].value, true, from}
	}
	return s
}

func (s settings) classification() node.Classification {
	c := node.Classification{Classes: map[string]map[string]any{}, Parameters: map[string]any{}}
	for key := range s {
		if key.kind == class {
			c.Classes[key.class] = nil
		}
	}
	for key, v := range s {
		switch key.kind {
		case environment:
			c.Environment = v.value.(string)
		case classParameter:
			if c.Classes[key.class] == nil {
				c.Classes[key.class] = map[string]any{}
			}
			c.Classes[key.class][key.name] = v.value
		case parameter:
			c.Parameters[key.name] = v.value
		}
		if v.sensitive {
			c.Sensitive = append(c.Sensitive, key.String())
		}
	}
	slices.Sort(c.Sensitive)
	return c
}
