package store

import (
	"context"
	"errors"

	"github.com/espm-project/espm/internal/node"
)

// maxJumps bounds the index reads of one page. A page that needs more is short, and the list goes on.
const maxJumps = 20_000

// shared pages through the nodes whose certnames are in all of the indexes, in order of certname.
// It jumps: each index is read from the last certname found in another one, so the cost depends on the smallest
// index. A page's Next is a certname of the first index.
func (v nodeView) shared(ctx context.Context, indexes []string, after string, limit int, match func(node.Node) bool) (Page[node.Node], error) {
	var page Page[node.Node]
	j := jumper{records: v.records}
	next, err := j.following(ctx, indexes[0], after)
	page.Revision = j.revision
	for size := 0; next != "" && err == nil; {
		if len(page.Items) == limit || size >= pageBytes || j.jumps >= maxJumps {
			page.Next = after
			break
		}
		after = next
		at, err := j.inAll(ctx, indexes[1:], after)
		switch {
		case err != nil:
			return Page[node.Node]{}, err
		case at == "":
			return page, nil
		case at != after:
			if next, err = j.from(ctx, indexes[0], at); err != nil {
				return Page[node.Node]{}, err
			}
			continue
		}
		rec, err := v.reader.Get(ctx, nodeKey(node.Certname(at)))
		if err == nil {
			n, err := decode[node.Node](rec)
			if err != nil {
				return Page[node.Node]{}, err
			}
			if size += len(rec.Value); match(n) {
				page.Items = append(page.Items, n)
			}
		} else if !errors.Is(err, ErrNoKey) { // a node removed after the index was read is left out
			return Page[node.Node]{}, err
		}
		if next, err = j.following(ctx, indexes[0], at); err != nil {
			return Page[node.Node]{}, err
		}
	}
	return page, err
}

// jumper reads indexes whose keys end with a certname, and counts the reads.
type jumper struct {
	records
	jumps    int
	revision int64 // of the last read of following
}

// inAll returns the certname if all indexes have it; otherwise a later one of one of the indexes, empty if none
// follows.
func (j *jumper) inAll(ctx context.Context, indexes []string, name string) (string, error) {
	for _, index := range indexes {
		if at, err := j.from(ctx, index, name); err != nil || at != name {
			return at, err
		}
	}
	return name, nil
}

// from returns the first certname of an index that is not before name; empty if there is none.
func (j *jumper) from(ctx context.Context, index, name string) (string, error) {
	j.jumps++
	_, err := j.reader.Get(ctx, index+name)
	if errors.Is(err, ErrNoKey) {
		return j.following(ctx, index, name)
	}
	return name, err
}

// following returns the first certname of an index after name; empty if there is none.
func (j *jumper) following(ctx context.Context, index, name string) (string, error) {
	j.jumps++
	if name != "" {
		name = index + name
	}
	recs, rev, err := j.reader.List(ctx, index, name, 1)
	j.revision = rev
	if err != nil || len(recs) == 0 {
		return "", err
	}
	return recs[0].Key[len(index):], nil
}
