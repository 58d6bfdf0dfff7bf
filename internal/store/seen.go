package store

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// Seen says when a registration was last seen.
type Seen struct {
	Certname node.Certname `json:"-"`
	UID      node.UID      `json:"uid"`
	At       time.Time     `json:"at"`

	// NodeRevision is the revision of the node's record at the look-up.
	NodeRevision int64 `json:"-"`
}

// PutSeen stores when nodes were last seen, in one commit that gives watches no event. Each node must be live at the
// revision given. Otherwise the error wraps node.ErrStale, and nothing is written. So no such record is left of a
// node that is terminated.
func (s *Store) PutSeen(ctx context.Context, all []Seen) error {
	b := Batch{Unwatched: true}
	for _, seen := range all {
		b.Guards = append(b.Guards, Guard{nodeKey(seen.Certname), seen.NodeRevision})
		b.Puts = append(b.Puts, Put{seenKey(seen.Certname), encode(seen)})
	}
	_, err := s.commit(context.WithoutCancel(ctx), b)
	return err
}

// LastSeen returns when a registration was last seen, as stored; zero if never.
func (v nodeView) LastSeen(ctx context.Context, name node.Certname, uid node.UID) (time.Time, error) {
	seen, ok, err := optional[Seen](ctx, v.records, seenKey(name))
	if !ok || seen.UID != uid {
		return time.Time{}, err
	}
	return seen.At, nil
}

// Unclaimed yields the nodes with a launch deadline that were not seen yet, the earliest deadline first.
func (v nodeView) Unclaimed(ctx context.Context) iter.Seq2[node.Node, error] {
	return func(yield func(node.Node, error) bool) {
		for rec, err := range v.scan(ctx, claimPrefix, "") {
			if err != nil {
				yield(node.Node{}, err)
				return
			}
			n, err := v.Node(ctx, node.Certname(lastPart(rec.Key)))
			if errors.Is(err, node.ErrNodeNotFound) || err == nil && (!n.Unclaimed() || claimKey(n) != rec.Key) {
				continue // changed after the index was read
			}
			if !yield(n, err) || err != nil {
				return
			}
		}
	}
}
