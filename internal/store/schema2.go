package store

import (
	"context"
	"maps"
	"slices"
)

// Schema version 2 has marks of the sets of groups that nodes are in, and an index of their nodes. Version 1 had a
// mark for each group.

// migrated is how many records one batch of a migration has at most.
const migrated = 1000

// indexSets writes the marks of the sets of groups, and the index of their nodes.
func indexSets(ctx context.Context, s *Store, after string) (b Batch, last string, err error) {
	recs, _, err := s.engine.List(ctx, nodePrefix, after, s.Fit(migrated, 1))
	sets := map[string]bool{}
	for _, rec := range recs {
		last = rec.Key
		n, err := decode[struct {
			Groups []string `json:"groups"`
		}](rec)
		if err != nil {
			return b, "", err
		}
		if len(n.Groups) == 0 {
			continue
		}
		name := setName(n.Groups)
		sets[name] = true
		b.Guards = append(b.Guards, Guard{rec.Key, rec.Revision})
		b.Index.Puts = append(b.Index.Puts, setMemberPrefix(name)+lastPart(rec.Key))
	}
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		b.Puts = append(b.Puts, Put{setPrefix + name, nil})
	}
	return b, last, err
}

// removeGroupUse removes the marks of version 1, which nothing guards any more.
func removeGroupUse(ctx context.Context, s *Store, after string) (b Batch, last string, err error) {
	recs, _, err := s.engine.List(ctx, "mark/group-use/", after, s.Fit(migrated, 1))
	for _, rec := range recs {
		last = rec.Key
		b.Deletes = append(b.Deletes, rec.Key)
	}
	return b, last, err
}
