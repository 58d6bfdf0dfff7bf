// Package clock decides whether the system's clock can be trusted. With the dates of a wrong clock, a
// certificate or a CRL is useless or harmful: agents refuse a CRL that has expired or is not yet valid.
//
// The evidence is in espm's own data. The store has the latest time at which the clock was trusted. The CA
// has the dates of its certificate and its CRL. If the clock contradicts the evidence, espm signs nothing
// until the clock is right again or an admin accepts it.
package clock

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const (
	// MaxBehind is how far the clock may be behind the newest evidence.
	MaxBehind = 24 * time.Hour
	// MaxAhead is how far the clock may be ahead of the last time at which it was trusted.
	MaxAhead = 90 * 24 * time.Hour

	checkEvery = time.Minute
	storeEvery = time.Hour // the maximum age of the stored evidence
	alarmEvery = time.Hour
)

// Store persists the evidence; see store.Store.
type Store interface {
	Clock(ctx context.Context) (store.Clock, bool, error)
	AuditHead(ctx context.Context) (node.AuditHead, error)
	AuditLines(ctx context.Context, after int64, limit int) ([]store.AuditRecord, error)
	Commit(ctx context.Context, c *store.Change) (int64, error)
}

// Guard compares the clock with the evidence. All methods may be called concurrently.
type Guard struct {
	store Store
	now   func() time.Time
	log   logrus.FieldLogger

	writing sync.Mutex // must be locked to write the store
	stored  time.Time  // evidence.Newest in the store

	mu       sync.Mutex
	evidence store.Clock
	wrote    time.Time // when the CA's CRL was signed, or the last audit line of an earlier version; zero: not known or overruled
	begins   time.Time // notBefore of the CA's certificate; zero: not known
}

// New returns a Guard with the evidence of a store. An earlier version stored no evidence, so New uses the
// time of the last audit line. That time does not show that the clock is ahead, as a quiet store may have
// no lines for months.
func New(ctx context.Context, s Store, now func() time.Time, log logrus.FieldLogger) (*Guard, error) {
	g := &Guard{store: s, now: now, log: log}
	evidence, known, err := s.Clock(ctx)
	g.evidence, g.stored = evidence, evidence.Newest
	if err == nil && !known {
		g.wrote, err = newestLine(ctx, s)
	}
	if err != nil {
		return nil, fmt.Errorf("how late it is by the store: %w", err)
	}
	return g, nil
}

// newestLine returns the time of the last audit line, zero if there is none.
func newestLine(ctx context.Context, s Store) (time.Time, error) {
	head, err := s.AuditHead(ctx)
	if err != nil || head.Seq == 0 {
		return time.Time{}, err
	}
	lines, err := s.AuditLines(ctx, head.Seq-1, 1)
	if err != nil || len(lines) == 0 || lines[0].Err != nil { // `espm audit verify` reports a damaged line, so New does not fail
		return time.Time{}, err
	}
	return lines[0].Time.Time, nil
}

// Learn adds the evidence of the CA: the notBefore of its certificate, and the time at which its CRL was
// signed. Either may be zero.
func (g *Guard) Learn(begins, signed time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !begins.IsZero() {
		g.begins = begins
	}
	if signed.After(g.wrote) && signed.After(g.evidence.Overruled) {
		g.wrote = signed
	}
}

// Check returns nil if the clock can be trusted. Otherwise the error wraps node.ErrUnavailable, and the
// caller must sign nothing.
func (g *Guard) Check() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if err := g.doubt(now); err != nil {
		return fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	}
	if now.After(g.evidence.Newest) {
		g.evidence.Newest = now.UTC()
	}
	return nil
}

// doubt returns why a time can't be trusted.
func (g *Guard) doubt(now time.Time) error {
	const mend = "espm signs nothing; set the clock, or if it is right: espm clock accept"
	latest, newest := g.latest(), g.evidence.Newest
	switch {
	case now.Before(g.begins):
		return fmt.Errorf("the clock says %s, before the CA's certificate begins, %s: espm signs nothing; set the clock", stamp(now), stamp(g.begins))
	case latest.Sub(now) > MaxBehind:
		return fmt.Errorf("the clock says %s, more than a day before the newest record, of %s: %s", stamp(now), stamp(latest), mend)
	case !newest.IsZero() && now.Sub(newest) > MaxAhead:
		return fmt.Errorf("the clock says %s, more than 90 days after the newest record, of %s: %s", stamp(now), stamp(newest), mend)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Latest returns the latest time in the evidence: the present can't be earlier.
func (g *Guard) Latest() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.latest()
}

func (g *Guard) latest() time.Time {
	if g.wrote.After(g.evidence.Newest) {
		return g.wrote
	}
	return g.evidence.Newest
}

// State is the clock, compared with the evidence.
type State struct {
	Now    time.Time
	Latest time.Time // zero: there is no evidence
	Doubt  error     // why the clock is not trusted; nil: it is trusted
}

// State returns the present State.
func (g *Guard) State() State {
	err := g.Check()
	g.mu.Lock()
	defer g.mu.Unlock()
	return State{Now: g.now(), Latest: g.latest(), Doubt: err}
}

// Accept makes the present time the newest evidence, and adds an audit line. Both are durable when Accept
// returns. If the clock is trusted, Accept changes nothing. Before the notBefore of the CA's certificate,
// the error wraps node.ErrUnavailable.
func (g *Guard) Accept(ctx context.Context) error {
	g.writing.Lock()
	defer g.writing.Unlock()
	now := g.now().UTC()
	next, doubt := g.accepted(now)
	if doubt == nil {
		return nil
	}
	if next.Newest.IsZero() {
		return fmt.Errorf("%w: %w", node.ErrUnavailable, doubt)
	}
	line := audit.Line(ctx, now, node.ActionClockAccept)
	line.Object, line.Comment = "clock", doubt.Error()
	c := store.NewChange()
	c.Audit(line)
	c.PutClock(next)
	if _, err := g.store.Commit(ctx, c); err != nil {
		return fmt.Errorf("accept the clock: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.evidence, g.stored, g.wrote = next, now, time.Time{}
	g.log.WithField("now", stamp(now)).WithField("doubt", doubt.Error()).Warn("an admin accepted the clock")
	return nil
}

// accepted returns the evidence after an admin accepts now, and why now is not trusted. The evidence is
// zero if now can't be accepted.
func (g *Guard) accepted(now time.Time) (store.Clock, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	doubt := g.doubt(now)
	if doubt == nil || now.Before(g.begins) {
		return store.Clock{}, doubt
	}
	next := store.Clock{Newest: now, Overruled: g.evidence.Overruled}
	if latest := g.latest(); latest.After(now) && latest.After(next.Overruled) {
		next.Overruled = latest
	}
	return next, doubt
}

// Run stores the evidence every hour, and logs an alarm while the clock is not trusted. Run ends with ctx.
// Run must be called only once.
func (g *Guard) Run(ctx context.Context) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	doubted, failing := false, false
	var said time.Duration // the time since the last alarm
	for {
		err := g.Check()
		switch {
		case err == nil && doubted:
			g.log.Info("the clock is believed again")
		case err != nil && (!doubted || said >= alarmEvery):
			g.log.WithError(err).Error("the clock is not believed: no certificate and no CRL is signed")
			said = 0
		}
		doubted, said = err != nil, said+checkEvery
		if err := g.keep(ctx); err != nil && !failing {
			g.log.WithError(err).Error("the time can't be stored, by which a wrong clock is noticed at the next start; espm retries every minute")
			failing = true
		} else if err == nil {
			failing = false
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keep stores the evidence if the stored evidence is storeEvery old.
func (g *Guard) keep(ctx context.Context) error {
	g.writing.Lock()
	defer g.writing.Unlock()
	g.mu.Lock()
	evidence := g.evidence
	g.mu.Unlock()
	if evidence.Newest.IsZero() || evidence.Newest.Sub(g.stored) < storeEvery {
		return nil
	}
	c := store.NewChange()
	c.Unaudited() // an audit line would add nothing: the other lines have their times
	c.PutClock(evidence)
	if _, err := g.store.Commit(ctx, c); err != nil {
		return err
	}
	g.stored = evidence.Newest
	return nil
}
