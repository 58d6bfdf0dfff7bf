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

// Groups returns groups by name; node.ErrGroupNotFound if there is none.
type Groups interface {
	Group(ctx context.Context, name string) (node.Group, error)
}

// Source returns nodes and groups by name.
type Source interface {
	Groups
	Node(ctx context.Context, name node.Certname) (node.Node, error)
}

// Classify returns a node's merged classification. Error: node.ErrNodeNotFound if the certname has no live
// registration.
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
	// Between the two reads the node may have left a group, which was then deleted. So read the node again.
	again, rerr := src.Node(ctx, name)
	if rerr != nil || again.Revision == n.Revision {
		return n, merged, fmt.Errorf("classify %q: %w", name, err)
	}
	merged, err = Merge(ctx, src, again)
	return again, merged, err
}

// Merge merges a node's values with those of its groups; see classify.Node. Errors: those of Reach, and a
// *node.ConflictError if groups conflict.
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

// Reach reads groups and all their ancestors. Errors: node.ErrGroupNotFound and that of classify.CheckReach.
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
