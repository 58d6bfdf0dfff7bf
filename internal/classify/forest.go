package classify

import (
	"maps"
	"reflect"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// forest is groups with their ancestors. A write that would make a cycle is refused. In a damaged store with a
// cycle the functions still end.
type forest struct {
	parents   map[string][]string
	settings  map[string]settings
	ancestors map[string]map[string]bool // by group, once they are known
}

func newForest(groups int) *forest {
	return &forest{make(map[string][]string, groups), make(map[string]settings, groups), map[string]map[string]bool{}}
}

func (f *forest) add(g node.Group, s settings) {
	f.parents[g.Name], f.settings[g.Name] = g.Parents, s
}

// setters returns for each setting the groups that set it, in the order of names.
func (f *forest) setters(names []string) map[Setting][]string {
	all := map[Setting][]string{}
	for _, name := range names {
		for key := range f.settings[name] {
			all[key] = append(all[key], name)
		}
	}
	return all
}

// decide returns the value of the group nearest to the node. If several are nearest, none an ancestor of another,
// their values must be equal. The value is sensitive if one of them marks it.
func (f *forest) decide(key Setting, setters []string) (value, *Conflict) {
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
			return value{}, &Conflict{key, [2]string{nearest[0], other}}
		}
		first.sensitive = first.sensitive || v.sensitive
	}
	return first, nil
}

// ancestorsOf returns all groups that a group inherits.
func (f *forest) ancestorsOf(name string) map[string]bool {
	if all, done := f.ancestors[name]; done {
		return all
	}
	all := map[string]bool{}
	f.ancestors[name] = all
	for _, p := range f.parents[name] {
		all[p] = true
		maps.Copy(all, f.ancestorsOf(p))
	}
	return all
}

// reach returns the groups of a set and all that they inherit, sorted.
func (f *forest) reach(set []string) []string {
	all := map[string]bool{}
	for _, name := range set {
		all[name] = true
		maps.Copy(all, f.ancestorsOf(name))
	}
	return slices.Sorted(maps.Keys(all))
}

// conflicts returns the settings on which the groups of a set conflict.
func (f *forest) conflicts(set []string) map[Setting]bool {
	all := map[Setting]bool{}
	for key, setters := range f.setters(f.reach(set)) {
		if _, clash := f.decide(key, setters); clash != nil {
			all[key] = true
		}
	}
	return all
}
