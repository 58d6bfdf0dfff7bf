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
	// claimPatience bounds how long an answer waits until the claim is durable.
	claimPatience = 500 * time.Millisecond
)

// Sightings records when nodes were last seen: it notes look-ups in memory and stores them in batches. Its
// methods may be called concurrently.
type Sightings struct {
	store  *store.Store
	stored LastSeen
	now    func() time.Time
	log    logrus.FieldLogger
	claims singleflight.Group // by uid

	mu       sync.Mutex
	fresh    map[node.Certname]store.Seen // not stored yet
	flushing map[node.Certname]store.Seen // being stored; read-only
}

// NewSightings returns a Sightings. Run stores its sightings in stored; claims of launch deadlines are committed
// to s.
func NewSightings(s *store.Store, stored LastSeen, now func() time.Time, log logrus.FieldLogger) *Sightings {
	return &Sightings{store: s, stored: stored, now: now, log: log, fresh: map[node.Certname]store.Seen{}}
}

// Saw notes a look-up of a node; n is the record that was read. The first look-up of a node with a launch
// deadline claims the node. Saw waits until the claim is durable, at most claimPatience: the agent may be
// running its only catalog.
func (s *Sightings) Saw(_ context.Context, n node.Node) {
	at := s.now()
	s.note(store.Seen{Certname: n.Certname, UID: n.UID, At: at, NodeRevision: n.Revision})
	if n.Unclaimed() {
		s.claim(n, at)
	}
}

// claim commits a claim, and waits for that at most claimPatience.
func (s *Sightings) claim(n node.Node, at time.Time) {
	done := s.claims.DoChan(string(n.UID), func() (any, error) {
		err := claim(node.AsSelf(context.Background()), s.store, n, at)
		if err != nil { // logged here, as the caller may no longer wait
			s.log.WithError(err).WithField("certname", n.Certname).Error("the claim of a node within its launch deadline can't be stored yet")
		}
		return nil, err
	})
	patience := time.NewTimer(claimPatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		s.log.WithField("certname", n.Certname).Warn("storing the claim of a node within its launch deadline takes long")
	}
}

func (s *Sightings) note(seen store.Seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh[seen.Certname].NodeRevision <= seen.NodeRevision { // otherwise a slow look-up of an earlier registration
		s.fresh[seen.Certname] = seen
	}
}

// last returns when a registration was last seen; zero if never.
func (s *Sightings) last(ctx context.Context, n node.Node) (time.Time, error) {
	if at, ok := s.recent(n); ok {
		return at, nil
	}
	at, err := s.stored.LastSeen(ctx, n.Certname, n.UID)
	if at.Before(n.ClaimedAt) { // after a crash the store may have the claim and not the sighting
		at = n.ClaimedAt
	}
	return at, err
}

// recent returns when a registration was last seen, if that is in memory.
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

// Run stores the sightings every 30 seconds until ctx is done, and once more at the end. It must be called once
// only.
func (s *Sightings) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := s.flush(context.WithoutCancel(ctx)); err != nil {
				s.log.WithError(err).Error("the last-seen times of the last 30 seconds can't be stored and are lost")
			}
			return
		case <-tick.C:
			if err := s.flush(ctx); err != nil && ctx.Err() == nil {
				s.log.WithError(err).Warn("last-seen times can't be stored yet")
			}
		}
	}
}

// flush stores the sightings. Those that it can't store stay in memory.
func (s *Sightings) flush(ctx context.Context) error {
	s.mu.Lock()
	s.flushing, s.fresh = s.fresh, map[node.Certname]store.Seen{}
	s.mu.Unlock()
	all := make([]store.Seen, 0, len(s.flushing))
	for _, name := range slices.Sorted(maps.Keys(s.flushing)) { // sorted: neighbours share a page of the store
		seen := s.flushing[name]
		seen.At = seen.At.UTC()
		all = append(all, seen)
	}
	left, err := s.stored.PutSeen(ctx, all)
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
