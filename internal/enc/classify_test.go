package enc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/classify"
	"github.com/espm-project/espm/internal/node"
)

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
func TestLimits(t *testing.T) {
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
		groups, err := Reach(t.Context(), test.world, test.world.node.Groups)
		if err == nil {
			err = classify.CheckSize(classify.Size(groups))
		}
		switch {
		case test.rule == "" && err != nil:
			t.Error(err)
		case test.rule != "" && (!errors.Is(err, node.ErrInvalid) || !strings.HasPrefix(err.Error(), test.rule)):
			t.Errorf("got %v, want %s", err, test.rule)
		}
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
