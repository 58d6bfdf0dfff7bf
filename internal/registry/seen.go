package registry

import (
	"context"
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
	// claimPatience is how long an answer waits for a claim to be durable.
	claimPatience = 500 * time.Millisecond
)

// Sightings knows when nodes were last seen: their look-ups are counted in
// memory and stored in batches. Its methods may be called at once.
type Sightings struct {
	store  *store.Store
	kept   LastSeen
	now    func() time.Time
	log    logrus.FieldLogger
	claims singleflight.Group // by uid

	mu       sync.Mutex
	fresh    map[node.Certname]store.Seen // not stored yet
	flushing map[node.Certname]store.Seen // being stored; not changed any more
}

// NewSightings returns a Sightings. Run has kept what it counts; the first
// look-up of a node with a launch deadline is a change in the store.
func NewSightings(s *store.Store, kept LastSeen, now func() time.Time, log logrus.FieldLogger) *Sightings {
	return &Sightings{store: s, kept: kept, now: now, log: log, fresh: map[node.Certname]store.Seen{}}
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
		err := claim(node.AsSelf(context.Background()), s.store, n, at)
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
	at, err := s.kept.LastSeen(ctx, n.Certname, n.UID)
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
	all := make([]store.Seen, 0, len(s.flushing))
	for _, name := range slices.Sorted(maps.Keys(s.flushing)) { // in order: neighbours share a page of the store
		seen := s.flushing[name]
		seen.At = seen.At.UTC()
		all = append(all, seen)
	}
	left, err := s.kept.PutSeen(ctx, all)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushing = nil
	for _, seen := range left {
		if _, newer := s.fresh[seen.Certname]; !newer {
			s.fresh[seen.Certname] = seen
		}
	}
	return err
}
