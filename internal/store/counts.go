package store

import (
	"context"
	"strings"
)

// Counts returns how many records of each kind there are, as the first part of their keys has
// it: node, group, cert and so on. Indexes are not counted. It reads them all.
func (v View) Counts(ctx context.Context) (map[string]int, error) {
	counts := map[string]int{}
	for rec, err := range v.scan(ctx, "", "") {
		if err != nil {
			return nil, err
		}
		if kind, _, _ := strings.Cut(rec.Key, "/"); kind != "ix" && kind != "mark" {
			counts[kind]++
		}
	}
	return counts, nil
}
