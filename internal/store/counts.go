package store

import (
	"context"
	"strings"
)

// Counts returns the number of records by kind. The kind is the first part of the key: node, group, cert and so on.
// It does not count indexes. It reads all records.
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
