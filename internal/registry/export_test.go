package registry

import (
	"context"
	"time"
)

// Sweep is sweep, for tests of what is forgotten, and when.
func (r *Registry) Sweep(ctx context.Context) error { return r.housekeeping.sweep(ctx) }

// Housekeep does what Run does once an hour.
func Housekeep(ctx context.Context, r *Registry) { r.housekeeping.run(ctx) }

// SweepSets forgets the sets of groups that have no nodes.
func SweepSets(ctx context.Context, r *Registry) error { return r.groups.sweep(ctx) }

// EndLaunches checks the launch deadlines, for tests that set the clock.
func (r *Registry) EndLaunches(ctx context.Context) (time.Duration, error) {
	return r.launches.check(ctx)
}

// Flush is flush, for tests that do not wait.
func (s *Sightings) Flush(ctx context.Context) error { return s.flush(ctx) }

// Matches is matches.
var Matches = matches

// Sightings is what knows when nodes were last seen.
func (r *Registry) Sightings() *Sightings { return r.view.sightings }

// SettleAll is settleAll.
func SettleAll(ctx context.Context, r *Registry) bool { return r.settlement.settleAll(ctx) }
