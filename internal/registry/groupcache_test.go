package registry_test

import (
	"errors"
	"testing"

	"github.com/espm-project/espm/internal/node"
)

// A write of a group counts for the next registration, though groups are cached.
func TestCachedGroups(t *testing.T) {
	f := newFixture(t)
	ctx := self(t)
	set := func(value string) func(*node.Group) error {
		return func(g *node.Group) error {
			g.Classification.Parameters = map[string]any{"log_host": value}
			return nil
		}
	}
	for _, name := range []string{"a", "b"} {
		if _, err := f.CreateGroup(ctx, node.Group{Name: name}, false); err != nil {
			t.Fatal(err)
		}
	}
	check := func() error {
		_, err := f.Register(ctx, node.Node{Certname: "web1.test", Groups: []string{"a", "b"}}, "", true)
		return err
	}
	for _, step := range []struct {
		group, value string
		want         error
	}{{"a", "x", nil}, {"b", "y", node.ErrConflict}, {"b", "x", nil}, {"a", "z", node.ErrConflict}, {"b", "z", nil}} {
		if _, err := f.UpdateGroup(ctx, step.group, 0, set(step.value), false); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second is checked with groups of the cache
			if err := check(); !errors.Is(err, step.want) {
				t.Errorf("%s sets %s: got %v", step.group, step.value, err)
			}
		}
	}
}
