package node

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Placeholder replaces a sensitive value in every output that must not show it. In a change of a classification it
// means the stored value.
const Placeholder = "[sensitive]"

// Setting names one value of a classification: a class's parameter or, with
// Class empty, a top-scope parameter.
type Setting struct{ Class, Name string }

// String spells a setting as the API does.
func (s Setting) String() string {
	if s.Class == "" {
		return "parameters[" + s.Name + "]"
	}
	return "classes[" + s.Class + "]." + s.Name
}

// ParseSetting reads the form of Setting.String; false for any other text.
func ParseSetting(text string) (Setting, bool) {
	if rest, ok := strings.CutPrefix(text, "classes["); ok {
		class, name, ok := strings.Cut(rest, "].")
		return Setting{class, name}, ok && class != "" && name != ""
	}
	rest, ok := strings.CutPrefix(text, "parameters[")
	name, closed := strings.CutSuffix(rest, "]")
	return Setting{Name: name}, ok && closed && name != ""
}

// Value returns the value of a setting, which may be nil; false if it is not set.
func (cl Classification) Value(s Setting) (any, bool) {
	values := cl.Parameters
	if s.Class != "" {
		values = cl.Classes[s.Class]
	}
	v, ok := values[s.Name]
	return v, ok
}

// marks are the settings that are marked sensitive.
func (cl Classification) marks() map[Setting]bool {
	if len(cl.Sensitive) == 0 {
		return nil
	}
	out := make(map[Setting]bool, len(cl.Sensitive))
	for _, text := range cl.Sensitive {
		if s, ok := ParseSetting(text); ok {
			out[s] = true
		}
	}
	return out
}

// with returns a copy that has other values. It shares what it does not change.
func (cl Classification) with(values map[Setting]any) Classification {
	if len(values) == 0 {
		return cl
	}
	cl.Classes, cl.Parameters = maps.Clone(cl.Classes), maps.Clone(cl.Parameters)
	copied := map[string]bool{}
	for s, v := range values {
		if s.Class == "" {
			cl.Parameters[s.Name] = v
			continue
		}
		if !copied[s.Class] {
			cl.Classes[s.Class] = maps.Clone(cl.Classes[s.Class])
			copied[s.Class] = true
		}
		cl.Classes[s.Class][s.Name] = v
	}
	return cl
}

// Redacted returns the classification with the placeholder for every sensitive value.
func (cl Classification) Redacted() Classification {
	hidden := map[Setting]any{}
	for s := range cl.marks() {
		if _, set := cl.Value(s); set {
			hidden[s] = Placeholder
		}
	}
	return cl.with(hidden)
}

// Format prints a classification without its sensitive values, whatever the verb.
func (cl Classification) Format(f fmt.State, verb rune) {
	type bare Classification
	fmt.Fprintf(f, fmt.FormatString(f, verb), bare(cl.Redacted()))
}

// ClassificationEdit replaces parts of a classification by those of To.
type ClassificationEdit struct {
	To                                          Classification
	Environment, Classes, Parameters, Sensitive bool // what is replaced
}

// Apply applies the edit to a stored classification, and does not validate the result:
//
//   - the placeholder, for a setting that is and stays marked, keeps the value stored;
//   - unless Sensitive is replaced, each value keeps its mark; the mark of a removed value is removed.
//
// unmarked are the settings, sorted, that lose their mark although the edit gives them no value. Only a caller that may
// see these values may make the edit.
func (e ClassificationEdit) Apply(stored Classification) (next Classification, unmarked []string) {
	next = stored
	if e.Environment {
		next.Environment = e.To.Environment
	}
	if e.Classes {
		next.Classes = e.To.Classes
	}
	if e.Parameters {
		next.Parameters = e.To.Parameters
	}
	if e.Sensitive {
		next.Sensitive = e.To.Sensitive
	} else {
		next.Sensitive = slices.DeleteFunc(slices.Clone(stored.Sensitive), func(mark string) bool {
			s, _ := ParseSetting(mark)
			_, set := next.Value(s)
			return !set
		})
	}
	marked := next.marks()
	kept := map[Setting]any{}
	for s := range stored.marks() {
		given := s.Class == "" && e.Parameters || s.Class != "" && e.Classes
		now, set := next.Value(s)
		switch was, _ := stored.Value(s); {
		case !set:
		case marked[s] && given && now == any(Placeholder):
			kept[s] = was
		case !marked[s] && !given:
			unmarked = append(unmarked, s.String())
		}
	}
	slices.Sort(unmarked)
	return next.with(kept), unmarked
}

// sensitive checks which settings are marked.
func (c *checks) sensitive(cl Classification) map[Setting]bool {
	marked := make(map[Setting]bool, len(cl.Sensitive))
	for _, text := range cl.Sensitive {
		s, ok := ParseSetting(text)
		_, set := cl.Value(s)
		switch {
		case !ok || !set:
			c.add("sensitive", `%s: must name a value that is set here, as "classes[CLASS].NAME" or "parameters[NAME]"`, clip(text))
		case marked[s]:
			c.add("sensitive", "%s is named twice", clip(text))
		}
		marked[s] = true
	}
	return marked
}

// setting checks one value. The error does not say what is wrong inside a sensitive value, as errors are logged.
func (c *checks) setting(s Setting, v any, depth int, sensitive bool) int {
	if v == any(Placeholder) {
		c.add(s.String(), "%s stands for a sensitive value that is stored and stays marked, and there is none: give the value", Placeholder)
	}
	if !sensitive {
		return c.value(s.String(), v, depth)
	}
	var inside checks
	size := inside.value(s.String(), v, depth)
	if inside.violations != nil {
		c.add(s.String(), "breaks a rule of values, which is not told as it is sensitive: at most %d deep, valid UTF-8 without NUL, "+
			`finite numbers, no map key "<<" or of over %d bytes`, maxDepth, maxName)
	}
	return size
}
