package registry

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/singleflight"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const (
	flushEvery = 30 * time.Second
	flushBatch = 1000 // nodes to a commit, as other writers wait for it
	// claimPatience is how long an answer waits for a claim to be durable.
	claimPatience = 500 * time.Millisecond
)

// Sightings knows when nodes were last seen: their look-ups are counted in
// memory and stored in batches. Its methods may be called at once.
type Sightings struct {
	store  *store.Store
	now    func() time.Time
	log    logrus.FieldLogger
	claims singleflight.Group // by uid

	mu       sync.Mutex
	fresh    map[node.Certname]store.Seen // not stored yet
	flushing map[node.Certname]store.Seen // being stored; not changed any more
}

// NewSightings returns a Sightings. Run stores what it counts.
func NewSightings(s *store.Store, now func() time.Time, log logrus.FieldLogger) *Sightings {
	return &Sightings{store: s, now: now, log: log, fresh: map[node.Certname]store.Seen{}}
}

// Saw counts a look-up of a node, as it was read. The first one of a node with
// a launch deadline is durable when Saw returns, if that takes half a second at
// most: the node may be running its only catalog.
func (s *Sightings) Saw(_ context.Context, n node.Node) {
	at := s.now()
	s.note(store.Seen{Certname: n.Certname, UID: n.UID, At: at, NodeRevision: n.Revision})
	if n.Unclaimed() {
		s.claim(n, at)
	}
}

// claim has it stored that a node was seen within its launch deadline, and waits for that a while.
func (s *Sightings) claim(n node.Node, at time.Time) {
	done := s.claims.DoChan(string(n.UID), func() (any, error) {
		err := claim(context.Background(), s.store, n, at)
		if err != nil { // the caller may have gone on
			s.log.WithError(err).WithField("certname", n.Certname).Error("a node was seen within its launch deadline, which can't be stored yet")
		}
		return nil, err
	})
	patience := time.NewTimer(claimPatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		s.log.WithField("certname", n.Certname).Warn("a node was seen within its launch deadline; storing that takes long")
	}
}

func (s *Sightings) note(seen store.Seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh[seen.Certname].NodeRevision <= seen.NodeRevision { // else a look-up of an earlier life that was slow
		s.fresh[seen.Certname] = seen
	}
}

// last returns when a registration was last seen; zero for never.
func (s *Sightings) last(ctx context.Context, n node.Node) (time.Time, error) {
	if at, ok := s.recent(n); ok {
		return at, nil
	}
	at, err := s.store.LastSeen(ctx, n.Certname, n.UID)
	if at.Before(n.ClaimedAt) { // a crash came before the time was stored, but after the claim
		at = n.ClaimedAt
	}
	return at, err
}

// recent is last, as far as it is in memory.
func (s *Sightings) recent(n node.Node) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range []map[node.Certname]store.Seen{s.fresh, s.flushing} {
		if seen, ok := m[n.Certname]; ok && seen.UID == n.UID {
			return seen.At, true
		}
	}
	return time.Time{}, false
}

// Run stores what was counted, every 30 seconds, until ctx is done, and once
// more then. It is called once.
func (s *Sightings) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := s.flush(context.WithoutCancel(ctx)); err != nil {
				s.log.WithError(err).Error("when nodes were last seen is lost, from up to 30 seconds ago")
			}
			return
		case <-tick.C:
			if err := s.flush(ctx); err != nil && ctx.Err() == nil {
				s.log.WithError(err).Warn("when nodes were last seen can't be stored yet")
			}
		}
	}
}

// flush stores what was counted. What it could not store stays.
func (s *Sightings) flush(ctx context.Context) error {
	s.mu.Lock()
	s.flushing, s.fresh = s.fresh, map[node.Certname]store.Seen{}
	s.mu.Unlock()
	var first error
	left := map[node.Certname]store.Seen{}
	names := slices.Sorted(maps.Keys(s.flushing)) // in order: neighbours share a page of the store
	for batch := range slices.Chunk(names, s.store.Fit(flushBatch, 1)) {
		all := make([]store.Seen, len(batch))
		for i, name := range batch {
			all[i] = s.flushing[name]
			all[i].At = all[i].At.UTC()
		}
		if err := s.put(ctx, all); err != nil {
			first = cmp.Or(first, err)
			for _, name := range batch {
				left[name] = s.flushing[name]
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(left, s.fresh)
	s.fresh, s.flushing = left, nil
	return first
}

// put stores a batch, without the nodes that are gone. One in which a node changed
// since is halved, so that those that keep changing do not hold up the others.
func (s *Sightings) put(ctx context.Context, batch []store.Seen) error {
	err := s.store.PutSeen(ctx, batch)
	for range maxAttempts {
		if !errors.Is(err, node.ErrStale) {
			return err
		}
		var rerr error
		if batch, rerr = s.reread(ctx, batch); rerr != nil || len(batch) == 0 {
			return rerr
		}
		if half := len(batch) / 2; half > 0 {
			return errors.Join(s.put(ctx, batch[:half]), s.put(ctx, batch[half:]))
		}
		err = s.store.PutSeen(ctx, batch)
	}
	return err
}

// reread brings a batch up to date with the nodes' records.
func (s *Sightings) reread(ctx context.Context, batch []store.Seen) ([]store.Seen, error) {
	live := batch[:0]
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
