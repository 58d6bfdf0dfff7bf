package directory_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	guard "github.com/espm-project/espm/internal/clock"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/enginetest"
)

// guarded returns the options of a folder whose clock is guarded, and a function that is a daemon's start: it returns what
// the store has.
func guarded(t *testing.T, c *calendar, o directory.Options) func() (directory.Options, *guard.Guard) {
	t.Helper()
	s, err := store.New(t.Context(), enginetest.Open(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	return func() (directory.Options, *guard.Guard) {
		g, err := guard.New(t.Context(), s, c.now, log)
		if err != nil {
			t.Fatal(err)
		}
		o.Now, o.Uptime, o.Clock = c.now, c.uptime, g
		return o, g
	}
}

// keep has the guard store what it knows, as it does at once when it runs.
func keep(t *testing.T, g *guard.Guard) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.Run(ctx)
}

// TestClockInDoubtSignsNothing: a daemon that starts with a clock years off, or whose clock is set while it runs, leaves
// ca_crl.pem and its copies as they are. It goes on when the clock is right again, or is accepted.
func TestClockInDoubtSignsNothing(t *testing.T) {
	const year = 365 * day
	for name, c := range map[string]struct {
		step   time.Duration
		start  bool
		accept bool
	}{
		"seven years back at the start":  {-7 * year, true, false},
		"six years ahead at the start":   {6 * year, true, false},
		"seven years back while it runs": {-7 * year, false, false},
		"six years ahead while it runs":  {6 * year, false, false},
		"off for four months":            {120 * day, true, true},
		"a clock that had been ahead":    {-60 * day, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			// The CA is older than any of the clocks, and outlives them.
			calendar := newCalendar()
			dir := filepath.Join(t.TempDir(), "ca")
			made := calendar.now().Add(-10 * year)
			if err := directory.Create(dir, directory.CreateOptions{Host: "puppet.example.com", Key: ca.ECP256, Validity: 40 * year, Now: func() time.Time { return made }}); err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(t.TempDir(), "crl.pem")
			start := guarded(t, calendar, directory.Options{Publish: []string{copied}, CRLValidity: year})
			o, g := start()
			a := open(t, dir, o)
			care(t, a)
			cert := sign(t, a, "web.example.com")
			revoke(t, a, target(cert))
			keep(t, g)
			files := func() string { return read(t, dir, "ca_crl.pem") + read(t, copied) }
			before, inventory := files(), read(t, dir, "inventory.txt")

			calendar.step(c.step)
			if c.start {
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
				o, g = start()
				a = open(t, dir, o)
			}
			next := request(t, a, "next.example.com")
			_, checkErr := a.Check(t.Context(), next)
			_, signErr := a.Sign(t.Context(), next)
			_, revokeErr := a.Revoke(t.Context(), []ca.Target{{Serial: "0A0B"}})
			for what, err := range map[string]error{"check": checkErr, "sign": signErr, "revoke": revokeErr} {
				if !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "the clock says") {
					t.Errorf("%s: got %v", what, err)
				}
			}
			_ = a.Care(t.Context()) // it fails if it has to sign
			if files() != before || read(t, dir, "inventory.txt") != inventory {
				t.Error("a file was changed")
			}
			if again, err := a.Revoke(t.Context(), []ca.Target{target(cert)}); err != nil || len(again) != 1 {
				t.Errorf("what is on the CRL already: %v, %v", again, err)
			}

			if c.accept {
				if err := g.Accept(node.AsSelf(t.Context())); err != nil {
					t.Fatal(err)
				}
			} else {
				calendar.step(-c.step)
			}
			care(t, a)
			if _, err := a.Sign(t.Context(), next); err != nil {
				t.Error(err)
			}
			revoke(t, a, ca.Target{Serial: "0A0B"})
			ownCRL(t, dir).expect(ownCRL(t, dir).number(), target(cert).Serial, "0A0B")
			if crl := readCRLs(t, copied)[0]; crl.ThisUpdate.After(calendar.now()) || crl.NextUpdate.Before(calendar.now()) {
				t.Errorf("the copy is valid from %v to %v, now is %v", crl.ThisUpdate, crl.NextUpdate, calendar.now())
			}
		})
	}
}

// TestMergeWaitsForTheClock: a start with a wrong clock does not lose what another program revoked in a copy.
func TestMergeWaitsForTheClock(t *testing.T) {
	calendar := newCalendar()
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	copied := filepath.Join(t.TempDir(), "crl.pem")
	start := guarded(t, calendar, directory.Options{Publish: []string{copied}})
	other, otherDir := twin(t, dir)
	revoke(t, other, ca.Target{Serial: "0A0C"})
	o, _ := start()
	a := open(t, dir, o)
	revoke(t, a, ca.Target{Serial: "0A0B"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	theirs := read(t, otherDir, "ca_crl.pem") // with the same number
	write(t, copied, theirs)
	calendar.step(-3 * day)
	o, _ = start()
	a = open(t, dir, o)
	if err := a.Care(t.Context()); !errors.Is(err, node.ErrUnavailable) || read(t, copied) != theirs {
		t.Errorf("care: %v; the copy was changed: %v", err, read(t, copied) != theirs)
	}
	ownCRL(t, dir).expect(1, "0A0B")
	calendar.step(3 * day)
	care(t, a)
	ownCRL(t, dir).expect(2, "0A0B", "0A0C")
	if read(t, copied) != read(t, dir, "ca_crl.pem") {
		t.Error("the copy is not the CRL")
	}
}

// TestEndedCRLIsNotPublished: a CRL that had ended by espm's newest record is not put in place of a copy.
func TestEndedCRLIsNotPublished(t *testing.T) {
	calendar := newCalendar()
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	copied := filepath.Join(t.TempDir(), "crl.pem")
	start := guarded(t, calendar, directory.Options{Publish: []string{copied}, CRLValidity: 12 * time.Hour})
	o, _ := start()
	a := open(t, dir, o)
	revoke(t, a, ca.Target{Serial: "0A0B"})
	before := read(t, copied)
	calendar.step(-20 * time.Hour) // within the day that is tolerated
	if _, err := a.Revoke(t.Context(), []ca.Target{{Serial: "0A0C"}}); !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "newest record") {
		t.Errorf("got %v", err)
	}
	if read(t, copied) != before {
		t.Error("the copy was changed")
	}
	calendar.step(20 * time.Hour)
	revoke(t, a, ca.Target{Serial: "0A0C"})
	ownCRL(t, dir).expect(ownCRL(t, dir).number(), "0A0B", "0A0C")
}
