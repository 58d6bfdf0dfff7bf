// Package enc makes Puppet's external node classification of a node: its own
// part and that of its groups and their ancestors merged, and rendered as YAML.
// It is linked by espm-enc, which Puppet Server starts for every catalog, so it
// imports little.
package enc

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// maxReachable bounds how many groups one node may inherit, directly or not.
const maxReachable = 256

// Groups finds groups by name; node.ErrGroupNotFound where there is none.
type Groups interface {
	Group(ctx context.Context, name string) (node.Group, error)
}

// Source is where nodes and groups are found.
type Source interface {
	Groups
	Node(ctx context.Context, name node.Certname) (node.Node, error)
}

// Classify returns a node's merged classification. node.ErrNodeNotFound where
// the certname has no live registration.
func Classify(ctx context.Context, src Source, name node.Certname) (node.Classification, error) {
	_, c, err := classify(ctx, src, name)
	return c, err
}

// classify is Classify, with the node.
func classify(ctx context.Context, src Source, name node.Certname) (node.Node, node.Classification, error) {
	n, err := src.Node(ctx, name)
	if err != nil {
		return n, node.Classification{}, err
	}
	merged, err := Merge(ctx, src, n)
	if err == nil {
		return n, merged, nil
	}
	// A group may have gone between the two reads, after the node had left it: look again.
	again, rerr := src.Node(ctx, name)
	if rerr != nil || again.Revision == n.Revision {
		return n, merged, fmt.Errorf("classifying %q: %w", name, err)
	}
	merged, err = Merge(ctx, src, again)
	return again, merged, err
}

// Merge returns what a node's own part and its groups make together: the node
// beats its groups, a group beats its ancestors. Classes add up; an
// environment and the value of a parameter are taken whole from the nearest
// that sets them, and so does the mark that it is sensitive. The errors are those of Inherit and Inherited.Merge.
func Merge(ctx context.Context, src Groups, n node.Node) (node.Classification, error) {
	if len(n.Groups) == 0 {
		return n.Classification, nil
	}
	h, err := Inherit(ctx, src, n.Groups)
	if err != nil {
		return node.Classification{}, err
	}
	return h.Merge(n)
}

// Inherited is what groups and their ancestors make together, for any node
// that is in just these groups.
type Inherited struct {
	settings  settings
	conflicts []conflict // where nothing among the groups decides
	groups    map[string]node.Group
}

// Inherit reads groups and their ancestors and decides what they can decide.
// The errors are node.ErrGroupNotFound and, where there are too many groups,
// a *node.InvalidError on field "groups".
func Inherit(ctx context.Context, src Groups, groups []string) (*Inherited, error) {
	f, err := gather(ctx, src, groups)
	if err != nil {
		return nil, err
	}
	h := &Inherited{settings: settings{}, groups: f.groups}
	for key, setters := range f.setters {
		decided, clash := f.decide(key, setters)
		if clash != nil {
			h.conflicts = append(h.conflicts, *clash)
		} else {
			h.settings[key] = decided
		}
	}
	slices.SortFunc(h.conflicts, func(a, b conflict) int { return cmp.Compare(a.key.String(), b.key.String()) })
	return h, nil
}

// Check returns the first conflict, in order of what is set, that the node's
// own part does not decide, as a *node.ConflictError.
func (h *Inherited) Check(n node.Node) error {
	if len(h.conflicts) == 0 {
		return nil
	}
	own := flatten(n.Classification)
	for _, c := range h.conflicts {
		if _, decided := own[c.key]; !decided {
			return &node.ConflictError{Setting: c.key.String(), Groups: c.groups, Nodes: []node.Certname{n.Certname}}
		}
	}
	return nil
}

// Merge returns what a node that is in these groups is classified as. The error is Check's.
func (h *Inherited) Merge(n node.Node) (node.Classification, error) {
	if err := h.Check(n); err != nil {
		return node.Classification{}, err
	}
	merged := flatten(n.Classification)
	for key, v := range h.settings {
		if _, own := merged[key]; !own {
			merged[key] = v
		}
	}
	return merged.classification(), nil
}

// CheckSize makes sure that the groups leave room for any node's own part in
// what Puppet takes. The error is a *node.InvalidError on field "groups".
func (h *Inherited) CheckSize() error {
	size := 0
	for _, g := range h.groups {
		size += g.Classification.Size()
	}
	if size > node.MaxGroupsSize {
		return node.Invalid("groups", "the groups that a node inherits have together at most %d characters as YAML, these have up to %d",
			node.MaxGroupsSize, size)
	}
	return nil
}

// setting is one thing that can be set: the environment, a class (its
// presence), a class parameter or a top-scope parameter.
type setting struct {
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

func (s setting) String() string {
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

type settings map[setting]value

type value struct {
	value     any
	sensitive bool
}

func flatten(c node.Classification) settings {
	s := settings{}
	if c.Environment != "" {
		s[setting{kind: environment}] = value{value: c.Environment}
	}
	for name, params := range c.Classes {
		s[setting{class, name, ""}] = value{}
		for k, v := range params {
			s[setting{classParameter, name, k}] = value{value: v}
		}
	}
	for k, v := range c.Parameters {
		s[setting{parameter, "", k}] = value{value: v}
	}
	for _, mark := range c.Sensitive {
		marked, _ := node.ParseSetting(mark) // validated when it was written
		key := setting{parameter, "", marked.Name}
		if marked.Class != "" {
			key = setting{classParameter, marked.Class, marked.Name}
		}
		s[key] = value{s[key].value, true}
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

// forest is what a node inherits: its groups and all their ancestors.
type forest struct {
	groups    map[string]node.Group
	ancestors map[string]map[string]bool
	settings  map[string]settings  // by group
	setters   map[setting][]string // names, sorted
}

type conflict struct {
	key    setting
	groups [2]string
}

// gather reads the groups reachable from the names given.
func gather(ctx context.Context, src Groups, names []string) (*forest, error) {
	f := &forest{map[string]node.Group{}, map[string]map[string]bool{}, map[string]settings{}, map[setting][]string{}}
	for queue := slices.Clone(names); len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if _, done := f.groups[name]; done {
			continue
		}
		if len(f.groups) == maxReachable {
			return nil, node.Invalid("groups", "a node inherits at most %d groups, directly or not", maxReachable)
		}
		g, err := src.Group(ctx, name)
		if err != nil {
			return nil, err
		}
		f.groups[name] = g
		queue = append(queue, g.Parents...)
	}
	for _, name := range slices.Sorted(maps.Keys(f.groups)) {
		f.settings[name] = flatten(f.groups[name].Classification)
		for key := range f.settings[name] {
			f.setters[key] = append(f.setters[key], name)
		}
	}
	return f, nil
}

// decide returns the value of the setter nearest to the node; where several
// are, none an ancestor of another, they must agree, and it is sensitive if one of them says so.
func (f *forest) decide(key setting, setters []string) (value, *conflict) {
	var nearest []string
	for _, s := range setters {
		beaten := slices.ContainsFunc(setters, func(o string) bool { return o != s && f.ancestorsOf(o)[s] })
		if !beaten {
			nearest = append(nearest, s)
		}
	}
	first := f.settings[nearest[0]][key]
	for _, other := range nearest[1:] {
		v := f.settings[other][key]
		if !reflect.DeepEqual(first.value, v.value) {
			return value{}, &conflict{key, [2]string{nearest[0], other}}
		}
		first.sensitive = first.sensitive || v.sensitive
	}
	return first, nil
}

// ancestorsOf returns all groups that a group inherits. Groups have no cycles:
// a write that would make one is refused.
func (f *forest) ancestorsOf(name string) map[string]bool {
	if all, done := f.ancestors[name]; done {
		return all
	}
	all := map[string]bool{}
	f.ancestors[name] = all
	for _, p := range f.groups[name].Parents {
		all[p] = true
		maps.Copy(all, f.ancestorsOf(p))
	}
	return all
}
