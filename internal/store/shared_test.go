package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/enginetest"
)

// A list by several labels, a group and an owner gives what all of them select, on pages of any size.
func TestSeveralFilters(t *testing.T) {
	f := newFixture(t)
	random := rand.New(rand.NewPCG(1, 2))
	var all []node.Node
	for i := range 200 {
		n := node.Node{Certname: node.Certname(fmt.Sprintf("n%03d", i)), Labels: map[string]string{}, Owner: fmt.Sprintf("token:%d", random.IntN(2))}
		for _, k := range []string{"a", "b", "c"} {
			n.Labels[k] = fmt.Sprint(random.IntN(3))
		}
		if random.IntN(3) == 0 {
			n.Groups = []string{"g"}
		}
		f.put(n)
		all = append(all, n)
	}
	for i := range 40 {
		filter := store.NodeFilter{Labels: map[string]string{"a": fmt.Sprint(i % 3)}}
		if i%2 == 0 {
			filter.Labels["b"] = fmt.Sprint(i % 4) // 3: no node has it
		}
		if i%5 < 3 {
			filter.Group = "g"
		}
		if i%7 < 4 {
			filter.Owner = "token:1"
		}
		var want []string
		for _, n := range all {
			if n.Labels["a"] == filter.Labels["a"] && (filter.Labels["b"] == "" || n.Labels["b"] == filter.Labels["b"]) &&
				(filter.Group == "" || len(n.Groups) > 0) && (filter.Owner == "" || n.Owner == filter.Owner) {
				want = append(want, string(n.Certname))
			}
		}
		equal(t, fmt.Sprintf("%+v", filter), f.names(filter, 1+i), want)
	}
}

// The work of a list by two labels goes by the label that fewer nodes have, whatever the labels are called.
func TestSeveralFiltersAreCheap(t *testing.T) {
	reads := &counting{Engine: enginetest.Open(t, nil)}
	s, err := store.New(t.Context(), reads)
	check(t, err)
	f := &fixture{s, reads, t}
	const nodes, hits = 2000, 10
	var all []node.Node
	for i := range nodes {
		n := node.Node{Certname: node.Certname(fmt.Sprintf("n%04d", i)), Labels: map[string]string{"all": "x"}}
		if i%(nodes/hits) == 7 {
			n.Labels["rare"], n.Labels["a-rare"] = "x", "x"
		}
		all = append(all, n)
	}
	for some := range slices.Chunk(all, 100) {
		f.do(func(c *store.Change) {
			for _, n := range some {
				c.PutNode(nil, n)
			}
		})
	}
	for _, rare := range []string{"rare", "a-rare"} {
		reads.n = 0
		if got := f.names(store.NodeFilter{Labels: map[string]string{"all": "x", rare: "x"}}, 1000); len(got) != hits {
			t.Errorf("%s: got %v", rare, got)
		}
		if reads.n > 10*hits {
			t.Errorf("%s: %d reads for %d hits", rare, reads.n, hits)
		}
	}
}

// counting counts the reads of an engine.
type counting struct {
	store.Engine
	n int
}

func (c *counting) Get(ctx context.Context, key string) (store.Record, error) {
	c.n++
	return c.Engine.Get(ctx, key)
}

func (c *counting) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, int64, error) {
	c.n++
	return c.Engine.List(ctx, prefix, after, limit)
}
