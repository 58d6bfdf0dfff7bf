package enc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
)

// Each entry is a node, the groups there are, and what Puppet is told. The
// text is JSON as in the API; "in" lists a node's groups or a group's parents.
var merges = []struct {
	what, node string
	groups     map[string]string
	want       string // the classification, or the error
}{
	{
		"a value that is inherited brings its mark, one that is beaten takes it along",
		`{"in": ["g"], "parameters": {"own": 1, "beaten": 2}, "sensitive": ["parameters[own]"]}`,
		map[string]string{
			"g": `{"in": ["p"], "classes": {"mysql": {"port": 1, "root": "x"}}, "parameters": {"beaten": 1}, "sensitive": ["classes[mysql].root", "parameters[beaten]"]}`,
			"p": `{"classes": {"mysql": {"port": 2}}, "parameters": {"far": 1}, "sensitive": ["classes[mysql].port", "parameters[far]"]}`,
		},
		`{"classes": {"mysql": {"port": 1, "root": "x"}}, "parameters": {"own": 1, "beaten": 2, "far": 1},
			"sensitive": ["classes[mysql].root", "parameters[far]", "parameters[own]"]}`,
	}, {
		"groups that agree on a value: one mark is enough",
		`{"in": ["a", "b", "c"]}`,
		map[string]string{"a": `{"parameters": {"x": 1}}`, "b": `{"parameters": {"x": 1}, "sensitive": ["parameters[x]"]}`, "c": `{"parameters": {"x": 1}}`},
		`{"parameters": {"x": 1}, "sensitive": ["parameters[x]"]}`,
	}, {
		"a conflict does not tell the values",
		`{"in": ["a", "b"]}`,
		map[string]string{"a": `{"parameters": {"x": "hunter2"}, "sensitive": ["parameters[x]"]}`, "b": `{"parameters": {"x": "hunter3"}}`},
		`groups "a" and "b" set parameters[x] to different values: affects web01`,
	}, {
		"a node alone is what it says",
		`{"environment": "prod", "classes": {"ntp": {"a": 1}}, "parameters": {"role": "web"}}`, nil,
		`{"environment": "prod", "classes": {"ntp": {"a": 1}}, "parameters": {"role": "web"}}`,
	}, {
		"the node beats its group",
		`{"in": ["g"], "environment": "prod", "classes": {"ntp": {"a": 1}}, "parameters": {"role": "web"}}`,
		map[string]string{"g": `{"environment": "test", "classes": {"ntp": {"a": 2, "b": 3}}, "parameters": {"role": "db", "dc": "x"}}`},
		`{"environment": "prod", "classes": {"ntp": {"a": 1, "b": 3}}, "parameters": {"role": "web", "dc": "x"}}`,
	}, {
		"a group beats its parent, and that beats its own",
		`{"in": ["g"]}`,
		map[string]string{
			"g": `{"in": ["p"], "parameters": {"a": "g"}}`,
			"p": `{"in": ["q"], "parameters": {"a": "p", "b": "p"}, "environment": "p"}`,
			"q": `{"parameters": {"a": "q", "b": "q", "c": "q"}, "environment": "q"}`,
		},
		`{"environment": "p", "parameters": {"a": "g", "b": "p", "c": "q"}}`,
	}, {
		"a group that is a parent of another group of the node is no equal of it",
		`{"in": ["g", "p"]}`,
		map[string]string{"g": `{"in": ["p"], "parameters": {"a": "g"}}`, "p": `{"parameters": {"a": "p"}}`},
		`{"parameters": {"a": "g"}}`,
	}, {
		"a group beats its parent's parent too, where the parent says nothing",
		`{"in": ["q", "g"]}`,
		map[string]string{
			"g": `{"in": ["p"], "parameters": {"a": "g"}}`,
			"p": `{"in": ["q"]}`,
			"q": `{"parameters": {"a": "q"}}`,
		},
		`{"parameters": {"a": "g"}}`,
	}, {
		"of a diamond, one side beats the top",
		`{"in": ["l", "r"]}`,
		map[string]string{
			"l": `{"in": ["top"], "parameters": {"a": "l"}}`, "r": `{"in": ["top"], "parameters": {"b": "r"}}`,
			"top": `{"parameters": {"a": "top", "b": "top", "c": "top"}, "classes": {"base": {"x": 1}}}`,
		},
		`{"classes": {"base": {"x": 1}}, "parameters": {"a": "l", "b": "r", "c": "top"}}`,
	}, {
		"of a diamond, the two sides disagree",
		`{"in": ["l", "r"]}`,
		map[string]string{"l": `{"in": ["top"], "parameters": {"a": 1}}`, "r": `{"in": ["top"], "parameters": {"a": 2}}`, "top": `{"parameters": {"a": 3}}`},
		`groups "l" and "r" set parameters[a] to different values: affects web01`,
	}, {
		"the bottom of a diamond decides",
		`{"in": ["bottom"]}`,
		map[string]string{
			"bottom": `{"in": ["l", "r"], "parameters": {"a": 0}}`,
			"l":      `{"parameters": {"a": 1}}`, "r": `{"parameters": {"a": 2}}`,
		},
		`{"parameters": {"a": 0}}`,
	}, {
		"a third group that inherits only one of two leaves them equals",
		`{"in": ["l", "r"]}`,
		map[string]string{"l": `{"in": ["p"], "parameters": {"a": 1}}`, "p": `{"parameters": {"a": 2}}`, "r": `{"parameters": {"a": 2}}`},
		`groups "l" and "r" set parameters[a] to different values: affects web01`,
	}, {
		"unrelated groups may agree",
		`{"in": ["l", "r"]}`,
		map[string]string{
			"l": `{"environment": "prod", "parameters": {"a": [1, {"k": null}]}, "classes": {"ntp": {"s": ["x"]}}}`,
			"r": `{"environment": "prod", "parameters": {"a": [1, {"k": null}]}, "classes": {"ntp": {"s": ["x"]}}}`,
		},
		`{"environment": "prod", "parameters": {"a": [1, {"k": null}]}, "classes": {"ntp": {"s": ["x"]}}}`,
	}, {
		"the order of a list matters",
		`{"in": ["l", "r"]}`,
		map[string]string{"l": `{"parameters": {"a": [1, 2]}}`, "r": `{"parameters": {"a": [2, 1]}}`},
		`groups "l" and "r" set parameters[a] to different values: affects web01`,
	}, {
		"text is no number",
		`{"in": ["l", "r"]}`,
		map[string]string{"l": `{"parameters": {"a": "1"}}`, "r": `{"parameters": {"a": 1}}`},
		`groups "l" and "r" set parameters[a] to different values: affects web01`,
	}, {
		"unrelated groups disagree on the environment",
		`{"in": ["l", "r"]}`,
		map[string]string{"l": `{"environment": "prod"}`, "r": `{"environment": "test"}`},
		`groups "l" and "r" set environment to different values: affects web01`,
	}, {
		"unrelated groups disagree on a class parameter",
		`{"in": ["r", "l"]}`,
		map[string]string{"l": `{"classes": {"ntp": {"s": 1}}}`, "r": `{"classes": {"ntp": {"s": 2}}}`},
		`groups "l" and "r" set classes[ntp].s to different values: affects web01`,
	}, {
		"of several conflicts the first in order is named",
		`{"in": ["l", "r", "s"]}`,
		map[string]string{
			"l": `{"parameters": {"a": 1, "b": 1}, "environment": "x"}`, "r": `{"parameters": {"a": 2, "b": 2}}`,
			"s": `{"environment": "y", "parameters": {"b": 3}}`,
		},
		`groups "l" and "s" set environment to different values: affects web01`,
	}, {
		"the node decides what its groups disagree on",
		`{"in": ["l", "r"], "environment": "x", "classes": {"ntp": {"s": 0}}, "parameters": {"a": null}}`,
		map[string]string{
			"l": `{"environment": "prod", "classes": {"ntp": {"s": 1}}, "parameters": {"a": 1}}`,
			"r": `{"environment": "test", "classes": {"ntp": {"s": 2}}, "parameters": {"a": 2}}`,
		},
		`{"environment": "x", "classes": {"ntp": {"s": 0}}, "parameters": {"a": null}}`,
	}, {
		"the node decides one of two things only",
		`{"in": ["l", "r"], "parameters": {"a": 0}}`,
		map[string]string{"l": `{"parameters": {"a": 1, "b": 1}}`, "r": `{"parameters": {"a": 2, "b": 2}}`},
		`groups "l" and "r" set parameters[b] to different values: affects web01`,
	}, {
		"classes add up, with or without parameters",
		`{"in": ["l", "r"], "classes": {"own": null}}`,
		map[string]string{"l": `{"classes": {"ntp": null, "ssh": {"port": 22}}}`, "r": `{"classes": {"ntp": {"s": 1}, "ssh": null, "motd": {}}}`},
		`{"classes": {"own": null, "ntp": {"s": 1}, "ssh": {"port": 22}, "motd": null}}`,
	}, {
		"a class named by the node keeps the parameters of its group",
		`{"in": ["g"], "classes": {"ntp": null}}`,
		map[string]string{"g": `{"classes": {"ntp": {"s": 1}}}`},
		`{"classes": {"ntp": {"s": 1}}}`,
	}, {
		"a null asks for the class's default again, and beats what is inherited",
		`{"in": ["g"], "classes": {"ntp": {"s": null}}, "parameters": {"a": null}}`,
		map[string]string{"g": `{"classes": {"ntp": {"s": 1}}, "parameters": {"a": 1}}`},
		`{"classes": {"ntp": {"s": null}}, "parameters": {"a": null}}`,
	}, {
		"a null disagrees with a value",
		`{"in": ["l", "r"]}`,
		map[string]string{"l": `{"classes": {"ntp": {"s": null}}}`, "r": `{"classes": {"ntp": {"s": 1}}}`},
		`groups "l" and "r" set classes[ntp].s to different values: affects web01`,
	}, {
		"maps are taken whole, not merged",
		`{"in": ["g"], "parameters": {"m": {"a": 1}}}`,
		map[string]string{"g": `{"parameters": {"m": {"a": 2, "b": 2}}}`},
		`{"parameters": {"m": {"a": 1}}}`,
	}, {
		"a group that is gone",
		`{"in": ["g"]}`, map[string]string{"g": `{"in": ["p"]}`},
		`group not found: "p"`,
	},
}

func TestMerge(t *testing.T) {
	for _, test := range merges {
		t.Run(test.what, func(t *testing.T) {
			w := newWorld(t, test.node, test.groups)
			for range 10 { // whatever the order of maps
				got, err := Merge(t.Context(), w, w.node)
				if err != nil {
					if err.Error() != test.want {
						t.Fatalf("got error %q\nwant %s", err, test.want)
					}
					continue
				}
				if want := parse[node.Classification](t, test.want); string(Render(got)) != string(Render(want)) || !slices.Equal(got.Sensitive, want.Sensitive) {
					t.Fatalf("got\n%s%q\nwant\n%s%q", Render(got), got.Sensitive, Render(want), want.Sensitive)
				}
			}
		})
	}
}

func TestMergeErrors(t *testing.T) {
	w := newWorld(t, `{"in": ["l", "r"]}`, map[string]string{"l": `{"environment": "a"}`, "r": `{"environment": "b"}`})
	_, err := Merge(t.Context(), w, w.node)
	conflict, ok := errors.AsType[*node.ConflictError](err)
	want := &node.ConflictError{Setting: "environment", Groups: [2]string{"l", "r"}, Nodes: []node.Certname{"web01"}}
	if !ok || !reflect.DeepEqual(conflict, want) || !errors.Is(err, node.ErrConflict) {
		t.Errorf("got %#v, want %#v", err, want)
	}
	delete(w.groups, "l")
	if _, err := Merge(t.Context(), w, w.node); !errors.Is(err, node.ErrGroupNotFound) {
		t.Errorf("group gone: %v", err)
	}
}

// A node inherits at most 256 groups, and 2,000,000 characters of them.
func TestInheritLimits(t *testing.T) {
	chain := func(n int, classification string) *world {
		groups := map[string]string{}
		for i := range n {
			in := fmt.Sprintf(`"in": ["g%d"], `, i+1)
			if i == n-1 {
				in = ""
			}
			groups[fmt.Sprint("g", i)] = fmt.Sprintf(`{%s"parameters": {"p%d": %s}}`, in, i, classification)
		}
		return newWorld(t, `{"in": ["g0"]}`, groups)
	}
	text := `"` + strings.Repeat("x", 495_000) + `"`
	for _, test := range []struct {
		world *world
		rule  string
	}{
		{chain(256, "1"), ""},
		{chain(257, "1"), "groups: a node inherits at most 256 groups"},
		{chain(4, text), ""},
		{chain(5, text), "groups: the groups that a node inherits have together at most 2000000 characters as YAML, these have up to 2475"},
	} {
		h, err := Inherit(t.Context(), test.world, test.world.node.Groups)
		if err == nil {
			err = h.CheckSize()
		}
		switch {
		case test.rule == "" && err != nil:
			t.Error(err)
		case test.rule != "" && (!errors.Is(err, node.ErrInvalid) || !strings.HasPrefix(err.Error(), test.rule)):
			t.Errorf("got %v, want %s", err, test.rule)
		}
	}
}

// A damaged store may hold a cycle: it ends all the same.
func TestMergeCycle(t *testing.T) {
	w := newWorld(t, `{"in": ["a"]}`, map[string]string{"a": `{"in": ["b"], "parameters": {"x": 1}}`, "b": `{"in": ["a"], "parameters": {"y": 2}}`})
	got, err := Merge(t.Context(), w, w.node)
	if err != nil || len(got.Parameters) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
}

// A group may go after the node was read: the node had left it by then.
func TestClassifyLooksAgain(t *testing.T) {
	w := newWorld(t, `{"in": ["old"]}`, map[string]string{"new": `{"parameters": {"a": "new"}}`})
	w.node.Revision = 1
	reads := 0
	w.onNode = func(n *node.Node) {
		if reads++; reads == 2 {
			n.Groups, n.Revision = []string{"new"}, 2
		}
	}
	got, err := Classify(t.Context(), w, "web01")
	if err != nil || got.Parameters["a"] != "new" {
		t.Errorf("got %v, %v", got, err)
	}

	w = newWorld(t, `{"in": ["old"]}`, nil) // nothing changes: the error stands, and says for whom
	if _, err := Classify(t.Context(), w, "web01"); !errors.Is(err, node.ErrGroupNotFound) || !strings.Contains(err.Error(), `"web01"`) {
		t.Errorf("got %v", err)
	}
	if _, err := Classify(t.Context(), w, "web02"); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("got %v", err)
	}
}

// world is one node, web01, and the groups there are.
type world struct {
	node   node.Node
	groups map[string]node.Group
	onNode func(*node.Node) // when the node is read
	err    error            // what the store says to everything
}

func newWorld(t *testing.T, n string, groups map[string]string) *world {
	t.Helper()
	type inherits struct {
		In []string `json:"in"`
	}
	w := &world{node: node.Node{Certname: "web01", Groups: parse[inherits](t, n).In, Classification: parse[node.Classification](t, n)}}
	w.groups = map[string]node.Group{}
	for name, text := range groups {
		w.groups[name] = node.Group{Name: name, Parents: parse[inherits](t, text).In, Classification: parse[node.Classification](t, text)}
	}
	return w
}

func (w *world) Node(_ context.Context, name node.Certname) (node.Node, error) {
	if w.err != nil {
		return node.Node{}, w.err
	}
	if name != w.node.Certname {
		return node.Node{}, fmt.Errorf("%w: %q", node.ErrNodeNotFound, name)
	}
	if w.onNode != nil {
		w.onNode(&w.node)
	}
	return w.node.Clone(), nil
}

func (w *world) Group(_ context.Context, name string) (node.Group, error) {
	g, ok := w.groups[name]
	if !ok {
		return g, fmt.Errorf("%w: %q", node.ErrGroupNotFound, name)
	}
	return g, nil
}

// parse reads JSON as the store does.
func parse[T any](t testing.TB, text string) (v T) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}
