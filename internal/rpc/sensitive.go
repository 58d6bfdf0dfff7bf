package rpc

import (
	"context"
	"strings"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// mayReveal refuses a request for sensitive values if the caller may not see such values.
func mayReveal(ctx context.Context, req interface{ GetRevealSensitive() bool }) error {
	if !req.GetRevealSensitive() {
		return nil
	}
	return registry.MayReveal(ctx)
}

// showNode is toNode, with sensitive values if reveal is set. Call mayReveal first: showNode does not check callers.
func showNode(n node.Node, reveal bool) (*espmv1.Node, error) {
	out, err := toNode(n)
	if err == nil && reveal {
		out.Classification, err = toClassification(n.Classification)
	}
	return out, err
}

// showGroup is toGroup, with sensitive values if reveal is set. Call mayReveal first: showGroup does not check callers.
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

// editClassification replaces the parts of a stored classification that the paths of an update mask name. Without
// reveal, no value that stays may lose its mark.
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
