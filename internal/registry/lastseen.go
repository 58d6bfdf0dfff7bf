package registry

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// LastSeen stores when registrations were last seen. It is an interface of its own: a daemon that may not write
// the store must be able to record look-ups elsewhere.
type LastSeen interface {
	// PutSeen stores sightings, and ignores those of registrations that are no longer live. It returns the
	// sightings that it could not store.
	PutSeen(ctx context.Context, all []store.Seen) (left []store.Seen, err error)

	// LastSeen returns when a registration was last seen; zero if never.
	LastSeen(ctx context.Context, name node.Certname, uid node.UID) (time.Time, error)
}

// SeenInStore returns a LastSeen that writes to the store.
func SeenInStore(s *store.Store) LastSeen { return seenInStore{s} }

type seenInStore struct{ store *store.Store }

const flushBatch = 1000 // the most nodes of one commit, as other writers wait for it

func (s seenInStore) LastSeen(ctx context.Context, name node.Certname, uid node.UID) (time.Time, error) {
	return s.store.LastSeen(ctx, name, uid)
}

func (s seenInStore) PutSeen(ctx context.Context, all []store.Seen) (left []store.Seen, err error) {
	if len(all) == 0 {
		return nil, nil
	}
	for batch := range slices.Chunk(all, s.store.Fit(flushBatch, 1)) {
		some, failed := s.put(ctx, slices.Clone(batch))
		left = append(left, some...)
		if err == nil {
			err = failed
		}
	}
	return left, err
}

// put stores a batch, without the nodes that are no longer live. If a node changed after its look-up, put halves
// the batch, so that a node that changes often does not delay the others.
func (s seenInStore) put(ctx context.Context, batch []store.Seen) (left []store.Seen, err error) {
	err = s.store.PutSeen(ctx, batch)
	for range maxAttempts {
		if !errors.Is(err, node.ErrStale) {
			break
		}
		live, rerr := s.reread(ctx, batch)
		if rerr != nil {
			return batch, rerr
		}
		if batch = live; len(batch) == 0 {
			return nil, nil
		}
		if half := len(batch) / 2; half > 0 {
			left1, err1 := s.put(ctx, batch[:half])
			left2, err2 := s.put(ctx, batch[half:])
			return slices.Concat(left1, left2), errors.Join(err1, err2)
		}
		err = s.store.PutSeen(ctx, batch)
	}
	if err != nil {
		left = batch
	}
	return left, err
}

// reread returns the batch with the current revisions, without the nodes that are no longer live.
func (s seenInStore) reread(ctx context.Context, batch []store.Seen) ([]store.Seen, error) {
	var live []store.Seen
	for _, seen := range batch {
		n, err := s.store.Node(ctx, seen.Certname)
		if errors.Is(err, node.ErrNodeNotFound) || err == nil && n.UID != seen.UID {
			continue
		}
		if err != nil {
			return nil, err
		}
		seen.NodeRevision = n.Revision
		live = append(live, seen)
	}
	return live, nil
}
