package store

import (
	"context"
	"maps"
	"slices"
)

// indexSets brings a store to version 2, in which the sets of groups that
// nodes are in are known and indexed. In version 1 each group had a mark.
func indexSets(ctx context.Context, e Engine) error {
	s := storeOf(e)
	if err := s.indexNodeSets(ctx); err != nil {
		return err
	}
	return s.removeGroupUse(ctx)
}

// migrated is how many records one commit of a migration has at most.
const migrated = 1000

func (s *Store) indexNodeSets(ctx context.Context) error {
	for after := ""; ; {
		recs, _, err := s.engine.List(ctx, nodePrefix, after, s.Fit(migrated, 1))
		if err != nil || len(recs) == 0 {
			return err
		}
		after = recs[len(recs)-1].Key
		b := Batch{Unwatched: true}
		marks := map[string]bool{}
		for _, rec := range recs {
			n, err := decode[struct {
				Groups []string `json:"groups"`
			}](rec)
			if err != nil {
				return err
			}
			if len(n.Groups) > 0 {
				name := setName(n.Groups)
				marks[setPrefix+name] = true
				b.Index.Puts = append(b.Index.Puts, setMemberPrefix(name)+lastPart(rec.Key))
			}
		}
		for _, mark := range slices.Sorted(maps.Keys(marks)) {
			b.Puts = append(b.Puts, Put{mark, nil})
		}
		if len(b.Puts) == 0 {
			continue
		}
		if _, err := s.commit(ctx, b); err != nil {
			return err
		}
	}
}

func (s *Store) removeGroupUse(ctx context.Context) error {
	for {
		recs, _, err := s.engine.List(ctx, "mark/group-use/", "", s.Fit(migrated, 1))
		if err != nil || len(recs) == 0 {
			return err
		}
		b := Batch{Unwatched: true}
		for _, rec := range recs {
			b.Deletes = append(b.Deletes, rec.Key)
		}
		if _, err := s.commit(ctx, b); err != nil {
			return err
		}
	}
}
