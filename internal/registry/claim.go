package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Launch deadlines. A node with one is open until it is seen (claimed) or the
// deadline has passed (terminated). docs/durability.md has the states, and what a crash in each leaves.

const (
	launchCheck        = time.Minute     // the deadlines and the clock are checked at least this often
	launchSlack        = 5 * time.Minute // for an agent whose run comes late, or takes long
	clockStep          = 5 * time.Second // a clock that differs by more between two checks was set
	defaultRunInterval = 30 * time.Minute
)

// launches terminates nodes whose launch deadline has passed. One goroutine uses it.
type launches struct {
	core
	missed      missed
	runInterval time.Duration // Options.RunInterval
	uptime      func() time.Duration
	sightings   *Sightings
	protection  func(node.Certname) string
	terminate   func(ctx context.Context, n node.Node, reason node.Reason, why string) (Terminated, error)
	kick        func() // the queue of revocations
}

// missed is when a look-up may have been missed. Nodes whose
// look-ups it may have missed are waited for.
type missed struct {
	begun    bool
	wall     time.Time     // at the last check
	uptime   time.Duration // at the last check
	missable map[node.UID]bool
	sureAt   time.Duration // the uptime at which they would have been seen
}

// claim commits that a node with a launch deadline was seen. That it is
// gone, or claimed, is no error.
func claim(ctx context.Context, s *store.Store, seen node.Node, at time.Time) error {
	return retry(func() error {
		old, err := s.Node(ctx, seen.Certname)
		if errors.Is(err, node.ErrNodeNotFound) {
			return nil
		}
		if err != nil || old.UID != seen.UID || !old.Unclaimed() {
			return err
		}
		n := old.Clone()
		n.ClaimedAt = at.UTC()
		n.UpdatedAt = n.ClaimedAt
		c := store.NewChange()
		c.Audit(audit.OfNode(ctx, at, node.ActionClaim, n))
		c.PutNode(&old, n)
		if _, err = s.Commit(ctx, c); err != nil {
			return fmt.Errorf("claiming %q: %w", n.Certname, err)
		}
		return nil
	})
}

// run terminates nodes whose launch deadline has passed, until ctx is done.
func (l *launches) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait, err := l.check(ctx)
		if err != nil && ctx.Err() == nil {
			l.log.WithError(err).Error("checking the launch deadlines")
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// check terminates the nodes whose launch deadline has passed, and
// returns how long to wait before the next check.
func (l *launches) check(ctx context.Context) (time.Duration, error) {
	now, uptime := l.now(), l.uptime()
	if err := l.watchClock(ctx, now, uptime); err != nil {
		return launchCheck, err
	}
	next := launchCheck
	if l.clock() != nil {
		return next, nil // the guard of the clock logs it
	}
	for n, err := range l.store.Unclaimed(ctx) {
		if err != nil {
			return launchCheck, err
		}
		if wait := n.ClaimBy.Sub(now); wait > 0 {
			next = min(next, wait)
			break
		}
		if wait := l.missed.sureAt - uptime; wait > 0 && l.missed.missable[n.UID] {
			next = min(next, wait)
			continue
		}
		if err := l.endLaunch(ctx, n); err != nil {
			if ctx.Err() != nil {
				return next, err
			}
			l.log.WithError(err).WithField("certname", n.Certname).Error("a node whose launch deadline has passed can't be terminated yet")
		}
	}
	return next, nil
}

// watchClock notes which nodes may have been looked up, or have run out of
// time, without this process knowing: all that are open when it starts, and
// when the clock was set or stood still (a machine suspended).
func (l *launches) watchClock(ctx context.Context, now time.Time, uptime time.Duration) error {
	m := &l.missed
	passed := now.Round(0).Sub(m.wall) // by the wall clock
	step := passed - (uptime - m.uptime)
	if m.begun && step.Abs() <= clockStep {
		m.wall, m.uptime = now.Round(0), uptime
		if uptime >= m.sureAt {
			m.missable = nil
		}
		return nil
	}
	missable := map[node.UID]bool{}
	for n, err := range l.store.Unclaimed(ctx) {
		if err != nil {
			return err
		}
		missable[n.UID] = true
	}
	if len(missable) > 0 {
		l.log.WithField("nodes", len(missable)).WithField("not_before", now.Add(l.runInterval+launchSlack).UTC().Format(time.RFC3339)).
			Info("launch deadlines are put off, as look-ups may have been missed")
	}
	*m = missed{begun: true, wall: now.Round(0), uptime: uptime, missable: missable, sureAt: uptime + l.runInterval + launchSlack}
	return nil
}

// endLaunch terminates a node whose launch deadline has passed, unless it was
// seen after all.
func (l *launches) endLaunch(ctx context.Context, due node.Node) error {
	err := retry(func() error {
		n, err := l.store.Node(ctx, due.Certname)
		if errors.Is(err, node.ErrNodeNotFound) {
			return nil
		}
		if err != nil || n.UID != due.UID || !n.Unclaimed() {
			return err
		}
		seen, err := l.sightings.last(ctx, n)
		if err != nil {
			return err
		}
		if !seen.IsZero() { // its claim could not be stored at the time
			return claim(ctx, l.store, n, seen)
		}
		if l.protection(n.Certname) != "" {
			return l.liftDeadline(ctx, n)
		}
		_, err = l.terminate(ctx, n, "", "not claimed by "+n.ClaimBy.UTC().Format(time.RFC3339))
		return err
	})
	l.kick()
	return err
}

// liftDeadline takes the launch deadline off a node that was put under protection since.
func (l *launches) liftDeadline(ctx context.Context, old node.Node) error {
	n := old.Clone()
	n.ClaimBy, n.UpdatedAt = time.Time{}, l.now().UTC()
	c := store.NewChange()
	c.Audit(l.line(ctx, node.ActionLift, n))
	c.PutNode(&old, n)
	_, err := l.store.Commit(ctx, c)
	if err == nil {
		l.log.WithField("certname", n.Certname).Warn("the launch deadline of a node that is protected now was lifted")
	}
	return err
}
