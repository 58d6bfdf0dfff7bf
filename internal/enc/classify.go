// Package enc answers as Puppet's external node classifier: it reads a node and
// its groups, has internal/classify merge them, and renders the result as YAML.
// It is linked by espm-enc, which Puppet Server starts for every catalog, so it
// imports little.
package enc

import (
	"context"
	"fmt"
	"slices"

	"github.com/espm-project/espm/internal/classify"
	"github.com/espm-project/espm/internal/node"
)

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
	_, c, err := classified(ctx, src, name)
	return c, err
}

// classified is Classify, with the node.
func classified(ctx context.Context, src Source, name node.Certname) (node.Node, node.Classification, error) {
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

// Merge returns what a node is classified as; see classify.Node. The errors
// are those of Reach and, where groups disagree, a *node.ConflictError.
func Merge(ctx context.Context, src Groups, n node.Node) (node.Classification, error) {
	if len(n.Groups) == 0 {
		return n.Classification, nil
	}
	groups, err := Reach(ctx, src, n.Groups)
	if err != nil {
		return node.Classification{}, err
	}
	answer := classify.Node(n, groups)
	if err := answer.Err(n.Certname); err != nil {
		return node.Classification{}, err
	}
	return answer.Classification(), nil
}

// Reach reads groups and all their ancestors. The errors are
// node.ErrGroupNotFound and that of classify.CheckReach.
func Reach(ctx context.Context, src Groups, names []string) (map[string]node.Group, error) {
	groups := map[string]node.Group{}
	for queue := slices.Clone(names); len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if _, done := groups[name]; done {
			continue
		}
		if err := classify.CheckReach(len(groups) + 1); err != nil {
			return nil, err
		}
		g, err := src.Group(ctx, name)
		if err != nil {
			return nil, err
		}
		groups[name] = g
		queue = append(queue, g.Parents...)
	}
	return groups, nil
}
