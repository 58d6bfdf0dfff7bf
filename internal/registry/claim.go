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

// A node with a launch deadline is unclaimed until espm sees its first look-up, which claims it. If the deadline
// passes first, espm terminates it. docs/durability.md lists the states and what a crash leaves in each.

const (
	launchCheck        = time.Minute     // the deadlines and the clock are checked at least this often
	launchSlack        = 5 * time.Minute // added to the run interval, for an agent whose run is late or slow
	clockStep          = 5 * time.Second // if the wall clock deviates by more between two checks, it was set
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

// missed holds the nodes whose look-ups this process may have missed. They are not terminated before sureAt.
type missed struct {
	begun    bool
	wall     time.Time         // at the last check
	uptime   time.Duration     // at the last check
	missable map[node.UID]bool // registrations whose look-up may have been missed
	sureAt   time.Duration     // the uptime by which a running agent of them has made another look-up
}

// claim commits the claim of a node with a launch deadline. It returns nil if the registration is no longer live
// or already claimed.
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
			return fmt.Errorf("claim %q: %w", n.Certname, err)
		}
		return nil
	})
}

// run terminates nodes whose launch deadline has passed, until ctx is done.
func (l *launches) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait, err := l.check(ctx)
		if err != nil && ctx.Err() == nil {
			l.log.WithError(err).Error("check the launch deadlines")
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// check terminates the nodes whose launch deadline has passed, and returns the wait until the next check.
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

// watchClock records the nodes whose look-ups this process may have missed: all unclaimed nodes when the process
// starts, and all again when the clock was set or the machine was suspended.
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
			Info("launch deadlines are extended, as espm may have missed look-ups")
	}
	*m = missed{begun: true, wall: now.Round(0), uptime: uptime, missable: missable, sureAt: uptime + l.runInterval + launchSlack}
	return nil
}

// endLaunch terminates a node whose launch deadline has passed. If the node was seen, endLaunch claims it instead.
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
		if !seen.IsZero() { // the look-up was counted, and its claim could not be committed then
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

// liftDeadline removes the launch deadline of a node whose name has become protected.
func (l *launches) liftDeadline(ctx context.Context, old node.Node) error {
	n := old.Clone()
	n.ClaimBy, n.UpdatedAt = time.Time{}, l.now().UTC()
	c := store.NewChange()
	c.Audit(l.line(ctx, node.ActionLift, n))
	c.PutNode(&old, n)
	_, err := l.store.Commit(ctx, c)
	if err == nil {
		l.log.WithField("certname", n.Certname).Warn("the launch deadline of a node was removed, as its name has become protected")
	}
	return err
}
