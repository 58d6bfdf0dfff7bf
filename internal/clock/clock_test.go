package clock_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/clock"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/enginetest"
	"github.com/espm-project/espm/test/need"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// fixture is a store and a clock that a test sets.
type fixture struct {
	t     *testing.T
	store *store.Store
	now   time.Time
	log   *logrus.Logger
	hook  *logtest.Hook
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	s, err := store.New(t.Context(), enginetest.Open(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	log, hook := logtest.NewNullLogger()
	return &fixture{t: t, store: s, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), log: log, hook: hook}
}

// start returns the guard of a daemon that starts now.
func (f *fixture) start() *clock.Guard {
	f.t.Helper()
	g, err := clock.New(f.t.Context(), f.store, func() time.Time { return f.now }, f.log)
	if err != nil {
		f.t.Fatal(err)
	}
	return g
}

// once runs what a guard does at each of its rounds.
func (f *fixture) once(g *clock.Guard) {
	ctx, cancel := context.WithCancel(f.t.Context())
	cancel()
	g.Run(ctx)
}

// believes checks whether the clock is believed, or why it is not.
func (f *fixture) believes(g *clock.Guard, doubt string) {
	f.t.Helper()
	err := g.Check()
	if doubt == "" && err != nil {
		f.t.Errorf("at %v: %v, want it believed", f.now, err)
	}
	if doubt != "" && (!errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), doubt)) {
		f.t.Errorf("at %v: got %v, want UNAVAILABLE with %q", f.now, err, doubt)
	}
}

const (
	behind = "more than a day before the newest record"
	ahead  = "more than 90 days after the newest record"
	before = "before the CA's certificate begins"
)

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		begins, signed time.Duration // before the last time of a believed clock; 0: not known
		first          bool          // nothing was believed yet
		step           time.Duration
		doubt          string
	}{
		"same time":                     {},
		"a day behind":                  {step: -day},
		"more than a day behind":        {step: -day - time.Second, doubt: behind},
		"90 days ahead":                 {step: 90 * day},
		"more than 90 days ahead":       {step: 90*day + time.Second, doubt: ahead},
		"seven years behind":            {begins: 10 * year, step: -7 * year, doubt: behind},
		"six years ahead":               {begins: 10 * year, step: 6 * year, doubt: ahead},
		"before the CA":                 {begins: 30 * day, step: -30*day - time.Second, doubt: before},
		"just before a new CA":          {begins: time.Hour, step: -time.Hour - time.Second, doubt: before},
		"first start":                   {first: true, begins: 10 * year},
		"first start, old CRL":          {first: true, begins: 10 * year, signed: 3 * year},
		"first start, before its CRL":   {first: true, begins: 10 * year, signed: 3 * year, step: -5 * year, doubt: behind},
		"first start, before the CA":    {first: true, begins: 10 * year, step: -11 * year, doubt: before},
		"a CRL later than the record":   {signed: -3 * day, step: day, doubt: behind},
		"a CRL a bit later":             {signed: -2 * day, step: day},
		"an old CRL shows no late time": {signed: -60 * day, step: 100 * day, doubt: ahead},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			g := f.start()
			if !c.first {
				f.believes(g, "")
			}
			var begins, signed time.Time
			if c.begins != 0 {
				begins = f.now.Add(-c.begins)
			}
			if c.signed != 0 {
				signed = f.now.Add(-c.signed)
			}
			g.Learn(begins, signed)
			right := f.now
			f.now = f.now.Add(c.step)
			f.believes(g, c.doubt)
			f.believes(g, c.doubt) // to ask is no evidence
			if f.now = right; c.doubt != "" && c.signed >= 0 {
				f.believes(g, "")
			}
		})
	}
}

// What is written with a clock that is not believed is no evidence at the next start.
func TestRestarts(t *testing.T) {
	f := newFixture(t)
	f.once(f.start())
	right := f.now
	for _, step := range []struct {
		by    time.Duration
		doubt string
	}{{6 * year, ahead}, {-7 * year, behind}} {
		f.now = right.Add(step.by)
		for range 3 {
			g := f.start()
			f.believes(g, step.doubt)
			f.once(g)
			f.record(node.ActionRegister)
		}
		f.now = right
		f.believes(f.start(), "")
	}
}

func (f *fixture) record(action node.Action) {
	f.t.Helper()
	log := audit.New(f.store, audit.Options{Now: func() time.Time { return f.now }, Log: f.log})
	line := audit.Line(node.AsSelf(f.t.Context()), f.now, action)
	if err := errors.Join(log.Record(f.t.Context(), line), log.Seal(f.t.Context())); err != nil {
		f.t.Fatal(err)
	}
}

// A store of an earlier version has no evidence but its audit log.
func TestEarlierVersion(t *testing.T) {
	f := newFixture(t)
	f.record(node.ActionRegister)
	right := f.now
	f.now = right.Add(-2 * day)
	f.believes(f.start(), behind)
	f.now = right.Add(year) // nothing may have changed for a year
	f.once(f.start())
	f.believes(f.start(), "")
	f.now = f.now.Add(91 * day)
	f.believes(f.start(), ahead)
}

// The evidence is stored once an hour, and not at each start.
func TestEvidenceIsStoredHourly(t *testing.T) {
	f := newFixture(t)
	var last int64
	for _, step := range []struct {
		pass  time.Duration
		write bool
	}{{0, true}, {0, false}, {time.Hour - time.Second, false}, {time.Second, true}, {30 * day, true}} {
		f.now = f.now.Add(step.pass)
		f.once(f.start())
		revision, err := f.store.Revision(t.Context())
		if err != nil || (revision > last) != step.write {
			t.Errorf("after %v: revision %d, was %d, %v; want it written: %v", step.pass, revision, last, err, step.write)
		}
		last = revision
	}
}

// An admin's word counts from then on, also after a restart, and against all that the wrong clock left.
func TestAccept(t *testing.T) {
	admin := node.Caller{Name: "local:root", Role: node.Admin, Local: true}
	for name, c := range map[string]struct {
		step   time.Duration
		signed time.Duration // when the CRL was signed, after the last time of a believed clock
	}{
		"it was off for long":             {step: 100 * day},
		"the clock had been ahead":        {step: -2 * year},
		"it had signed a CRL meanwhile":   {step: -2 * year, signed: time.Second},
		"a CRL is of a far later time":    {step: day, signed: 6 * year},
		"both, the CRL of a later time":   {step: -2 * year, signed: 6 * year},
		"off for long, CRL a bit younger": {step: 100 * day, signed: 8 * day},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.once(f.start())
			signed := f.now.Add(c.signed)
			f.now = f.now.Add(c.step)
			start := func() *clock.Guard {
				g := f.start()
				if c.signed != 0 {
					g.Learn(time.Time{}, signed)
				}
				return g
			}
			g := start()
			if g.Check() == nil {
				t.Fatal("it is believed at once")
			}
			accept(t, g, node.WithCaller(t.Context(), admin))
			f.believes(g, "")
			accept(t, g, node.WithCaller(t.Context(), admin)) // changes nothing
			f.now = f.now.Add(time.Hour)
			f.believes(start(), "")
			f.now = f.now.Add(-2 * day)
			f.believes(start(), behind)
			log := audit.New(f.store, audit.Options{Now: time.Now, Log: f.log})
			if err := log.Seal(t.Context()); err != nil {
				t.Fatal(err)
			}
			lines, err := f.store.AuditLines(t.Context(), 0, 10)
			if err != nil || len(lines) == 0 {
				t.Fatalf("%d audit lines, %v", len(lines), err)
			}
			if l := lines[0]; l.Action != node.ActionClockAccept || l.Principal != "local:root" || !strings.Contains(l.Comment, "the newest record") {
				t.Errorf("audit line %+v", l)
			}
		})
	}
}

// accept repeats an Accept whose outcome is unknown, as an admin does.
func accept(t *testing.T, g *clock.Guard, ctx context.Context) {
	t.Helper()
	err := g.Accept(ctx)
	if errors.Is(err, store.ErrUnknownOutcome) {
		err = g.Accept(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// No word of an admin makes certificates valid that begin before their CA.
func TestAcceptBeforeTheCA(t *testing.T) {
	f := newFixture(t)
	g := f.start()
	g.Learn(f.now, time.Time{})
	f.now = f.now.Add(-time.Second)
	if err := g.Accept(node.AsSelf(t.Context())); !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), before) {
		t.Errorf("got %v", err)
	}
	f.believes(g, before)
}

// The log says so at once, and once an hour, and when it is over.
func TestAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, hook := logtest.NewNullLogger()
		var ahead atomic.Int64 // nanoseconds
		g, err := clock.New(t.Context(), fakeStore{}, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }, log)
		if err != nil || g.Check() != nil {
			t.Fatal(err, g.Check())
		}
		ahead.Store(int64(6 * year))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { g.Run(ctx); close(ended) }()
		count := func(level logrus.Level) (n int) {
			for _, e := range hook.AllEntries() {
				if e.Level == level {
					n++
				}
			}
			return n
		}
		time.Sleep(2*time.Hour + 30*time.Second)
		if n := count(logrus.ErrorLevel); n != 3 {
			t.Errorf("%d alarms in two hours, want 3", n)
		}
		ahead.Store(0)
		time.Sleep(2 * time.Hour)
		if n := count(logrus.ErrorLevel); n != 3 || count(logrus.InfoLevel) != 1 {
			t.Errorf("%d alarms and %d all-clears, want 3 and 1", n, count(logrus.InfoLevel))
		}
		cancel()
		<-ended
	})
}

// fakeStore keeps nothing.
type fakeStore struct{ clock.Store }

func (fakeStore) Clock(context.Context) (store.Clock, bool, error)     { return store.Clock{}, true, nil }
func (fakeStore) Commit(context.Context, *store.Change) (int64, error) { return 1, nil }

// The kernel tells without a capability.
func TestSynchronized(t *testing.T) {
	kept, err := clock.Synchronized()
	t.Logf("a time service keeps the clock right: %v, %v", kept, err)
	need.This(t, err)
}
