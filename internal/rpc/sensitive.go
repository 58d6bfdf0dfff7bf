package rpc

import (
	"context"
	"strings"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// revealing checks a request that may ask for sensitive values.
func revealing(ctx context.Context, req interface{ GetRevealSensitive() bool }) error {
	if !req.GetRevealSensitive() {
		return nil
	}
	return registry.MayReveal(ctx)
}

// showNode is toNode for one who may have asked for sensitive values, which was checked.
func showNode(n node.Node, reveal bool) (*espmv1.Node, error) {
	out, err := toNode(n)
	if err == nil && reveal {
		out.Classification, err = toClassification(n.Classification)
	}
	return out, err
}

// showGroup is toGroup as showNode is toNode.
func showGroup(g node.Group, reveal bool) (*espmv1.Group, error) {
	out, err := toGroup(g)
	if err == nil && reveal {
		out.Classification, err = toClassification(g.Classification)
	}
	return out, err
}

var classificationPaths = []string{
	"classification", "classification.environment", "classification.classes", "classification.parameters", "classification.sensitive",
}

// editClassification returns what the paths of an update mask make of a stored
// classification. Only one who reveals may take a mark off a value that stays.
func editClassification(stored, to node.Classification, paths []string, reveal bool) (node.Classification, error) {
	edit := node.ClassificationEdit{To: to}
	for _, path := range paths {
		switch path {
		case "classification":
			edit = node.ClassificationEdit{To: to, Environment: true, Classes: true, Parameters: true, Sensitive: true}
		case "classification.environment":
			edit.Environment = true
		case "classification.classes":
			edit.Classes = true
		case "classification.parameters":
			edit.Parameters = true
		case "classification.sensitive":
			edit.Sensitive = true
		}
	}
	next, unmarked := edit.Apply(stored)
	if len(unmarked) > 0 && !reveal {
		return stored, node.Invalid("classification.sensitive", "would take the mark off %s, and so show the stored value: keep the mark, set another value, or set reveal_sensitive",
			node.Shorten(strings.Join(unmarked, ", "), maxText/8))
	}
	return next, nil
}
