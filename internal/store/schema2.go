package store

import (
	"context"
	"maps"
	"slices"
)

// In version 2 the sets of groups that nodes are in are known, with an index of their nodes. In version 1
// each group had a mark.

// migrated is how many records one batch of a migration has at most.
const migrated = 1000

// indexSets makes the sets of groups known, and indexes the nodes of each.
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
