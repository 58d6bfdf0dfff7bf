package classify

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
)

func newWrite(was, now node.Group, groups map[string]node.Group) *Write {
	groups[was.Name] = was
	w := NewWrite(was, now, groups)
	for _, g := range groups {
		w.Add(g)
	}
	return w
}

func TestWriteTellsWhatComesToDisagree(t *testing.T) {
	groups := parseGroups(t, map[string]string{
		"base": `{"parameters": {"tier": 1}}`, "web": `{"in": ["base"]}`, "gold": `{"parameters": {"tier": 1}}`, "torn": `{"parameters": {"tier": 3, "x": 1}}`,
	})
	w := newWrite(groups["base"], parseGroup(t, "base", `{"parameters": {"tier": 2, "x": 2}}`), groups)
	for set, want := range map[string]string{
		"web":       "",
		"gold web":  "parameters[tier] base gold",
		"torn web":  "parameters[x] base torn", // they disagreed on the tier before
		"gold gone": "",
	} {
		found, err := w.Check(strings.Fields(set))
		got := ""
		for _, c := range found {
			got += fmt.Sprint(c.Setting, " ", c.Groups[0], " ", c.Groups[1])
		}
		if got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", set, got, err, want)
		}
	}
}

// The bounds hold for a set as a whole, whatever its nodes have of their own.
func TestWriteKeepsTheBounds(t *testing.T) {
	long := strings.Repeat("x", 900_000)
	groups := map[string]node.Group{
		"a": {Name: "a"},
		"b": {Name: "b", Classification: node.Classification{Parameters: map[string]any{"b": long}}},
		"c": {Name: "c", Classification: node.Classification{Parameters: map[string]any{"c": long}}},
	}
	larger := node.Group{Name: "a", Classification: node.Classification{Parameters: map[string]any{"a": long}}}
	w := newWrite(groups["a"], larger, groups)
	if _, err := w.Check([]string{"a", "b"}); err != nil {
		t.Error(err)
	}
	if _, err := w.Check([]string{"a", "b", "c"}); !errors.Is(err, node.ErrInvalid) {
		t.Errorf("got %v", err)
	}

	groups = map[string]node.Group{"a": {Name: "a"}}
	var parents []string
	for i := range MaxGroups {
		name := fmt.Sprint("p", i)
		groups[name] = node.Group{Name: name}
		parents = append(parents, name)
	}
	w = newWrite(groups["a"], node.Group{Name: "a", Parents: parents}, groups)
	if _, err := w.Check([]string{"a"}); !errors.Is(err, node.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

// Write finds what Node finds, for any groups: each conflict that is there after the write and was not before.
func TestWriteAgreesWithNode(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		groups := randomGroups(r)
		name := fmt.Sprint("g", r.IntN(len(groups)))
		now := randomGroup(r, name)
		after := map[string]node.Group{}
		for n, g := range groups {
			after[n] = g
		}
		after[name] = now
		w := newWrite(groups[name], now, groups)
		for range 5 {
			var set []string
			for range 1 + r.IntN(3) {
				set = append(set, fmt.Sprint("g", r.IntN(len(groups))))
			}
			set = slices.Compact(slices.Sorted(slices.Values(set)))
			known := map[Setting]bool{}
			for _, c := range conflictsOf(set, groups) {
				known[c.Setting] = true
			}
			want := slices.DeleteFunc(conflictsOf(set, after), func(c Conflict) bool { return known[c.Setting] })
			got, err := w.Check(set)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("seed %d, set %v, write of %+v in place of %+v: got %v, %v, want %v", seed, set, now, groups[name], got, err, want)
			}
		}
	}
}

func conflictsOf(set []string, groups map[string]node.Group) []Conflict {
	reached := map[string]node.Group{}
	for queue := slices.Clone(set); len(queue) > 0; queue = queue[1:] {
		if _, done := reached[queue[0]]; !done {
			reached[queue[0]] = groups[queue[0]]
			queue = append(queue, groups[queue[0]].Parents...)
		}
	}
	return Node(node.Node{Groups: set}, reached).Conflicts
}

// randomGroups returns groups g0 to g6, each of which may inherit those with a lower number.
func randomGroups(r *rand.Rand) map[string]node.Group {
	groups := map[string]node.Group{}
	for i := range 7 {
		g := randomGroup(r, fmt.Sprint("g", i))
		groups[g.Name] = g
	}
	return groups
}

func randomGroup(r *rand.Rand, name string) node.Group {
	g := node.Group{Name: name, Classification: node.Classification{Parameters: map[string]any{}}}
	for i := range int(name[1] - '0') {
		if r.IntN(4) == 0 {
			g.Parents = append(g.Parents, fmt.Sprint("g", i))
		}
	}
	for _, p := range []string{"a", "b", "c"} {
		if r.IntN(3) == 0 {
			g.Classification.Parameters[p] = r.IntN(3)
		}
	}
	return g
}

// BenchmarkCheck is one set of four groups.
func BenchmarkCheck(b *testing.B) {
	groups := map[string]node.Group{"base": {Name: "base"}}
	for i := range 500 {
		name := fmt.Sprintf("role-%03d", i)
		groups[name] = node.Group{Name: name, Parents: []string{"base"}, Classification: node.Classification{Parameters: map[string]any{name: "x", "ntp": "y"}}}
	}
	now := node.Group{Name: "base", Classification: node.Classification{Parameters: map[string]any{"ntp": "z"}}}
	w := newWrite(groups["base"], now, groups)
	set := []string{"role-000", "role-100", "role-200", "role-300"}
	for b.Loop() {
		if found, err := w.Check(set); err != nil || found != nil {
			b.Fatal(found, err)
		}
	}
}
