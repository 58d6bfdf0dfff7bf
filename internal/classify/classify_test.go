package classify

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
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
	},
}

func TestNode(t *testing.T) {
	for _, test := range merges {
		t.Run(test.what, func(t *testing.T) {
			n, groups := parseNode(t, test.node), parseGroups(t, test.groups)
			for range 10 { // whatever the order of maps
				answer := Node(n, groups)
				if err := answer.Err(n.Certname); err != nil {
					if err.Error() != test.want {
						t.Fatalf("got error %q\nwant %s", err, test.want)
					}
					continue
				}
				got, want := answer.Classification(), parse[node.Classification](t, test.want)
				if text(got) != text(want) {
					t.Fatalf("got\n%s\nwant\n%s", text(got), text(want))
				}
			}
		})
	}
}

// text is a classification in one spelling: a class without parameters has none, whether it says so or not.
func text(c node.Classification) string {
	for name, params := range c.Classes {
		if len(params) == 0 {
			c.Classes[name] = nil
		}
	}
	b, _ := json.Marshal(c)
	return string(b)
}

// All conflicts are told, in order, but for those that the node decides. The error names the first.
func TestAllConflicts(t *testing.T) {
	groups := parseGroups(t, map[string]string{
		"l": `{"parameters": {"a": 1, "b": 1}, "environment": "x"}`, "r": `{"parameters": {"a": 2, "b": 2}}`,
		"s": `{"environment": "y", "parameters": {"b": 3}}`,
	})
	for own, want := range map[string][]string{
		`{}`:                       {"environment l s", "parameters[a] l r", "parameters[b] l r"},
		`{"parameters": {"a": 0}}`: {"environment l s", "parameters[b] l r"},
		`{"parameters": {"a": 0, "b": 0}, "environment": "z"}`: nil,
	} {
		n := parseNode(t, own)
		answer := Node(n, groups)
		var got []string
		for _, c := range answer.Conflicts {
			got = append(got, fmt.Sprint(c.Setting, " ", c.Groups[0], " ", c.Groups[1]))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, want %q", own, got, want)
		}
		err := answer.Err("web01")
		conflict, ok := errors.AsType[*node.ConflictError](err)
		if ok != (want != nil) || ok && (conflict.Setting != "environment" || !errors.Is(err, node.ErrConflict)) {
			t.Errorf("%s: got the error %v", own, err)
		}
	}
}

// Each value says which group it comes from, or that it is the node's own.
func TestOrigins(t *testing.T) {
	answer := Node(parseNode(t, `{"in": ["web"], "parameters": {"a": 0}}`), parseGroups(t, map[string]string{
		"web":  `{"in": ["base"], "parameters": {"a": 1, "b": 1}, "classes": {"ntp": {"s": 1}}}`,
		"base": `{"environment": "prod", "parameters": {"b": 2, "c": 2}, "classes": {"ntp": {"s": 2, "p": 2}}}`,
	}))
	want := []Origin{
		{"classes[ntp]", "web"}, {"classes[ntp].p", "base"}, {"classes[ntp].s", "web"},
		{"environment", "base"},
		{"parameters[a]", ""}, {"parameters[b]", "web"}, {"parameters[c]", "base"},
	}
	if got := answer.Origins(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A damaged store may hold a cycle: it ends all the same.
func TestCycle(t *testing.T) {
	answer := Node(parseNode(t, `{"in": ["a"]}`), parseGroups(t, map[string]string{
		"a": `{"in": ["b"], "parameters": {"x": 1}}`, "b": `{"in": ["a"], "parameters": {"y": 2}}`,
	}))
	if got := answer.Classification(); len(got.Parameters) != 2 {
		t.Errorf("got %v", got)
	}
}

type inherits struct {
	In []string `json:"in"`
}

// parseNode makes the node web01.
func parseNode(t testing.TB, text string) node.Node {
	t.Helper()
	return node.Node{Certname: "web01", Groups: parse[inherits](t, text).In, Classification: parse[node.Classification](t, text)}
}

func parseGroups(t testing.TB, texts map[string]string) map[string]node.Group {
	t.Helper()
	groups := map[string]node.Group{}
	for name, text := range texts {
		groups[name] = parseGroup(t, name, text)
	}
	return groups
}

func parseGroup(t testing.TB, name, text string) node.Group {
	t.Helper()
	return node.Group{Name: name, Parents: parse[inherits](t, text).In, Classification: parse[node.Classification](t, text)}
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
