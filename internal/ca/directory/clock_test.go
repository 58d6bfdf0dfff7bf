package directory_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

// TestWrongClockPrunesNothing: however far ahead a clock is set, and however long, a
// revoked certificate that has not ended stays on the CRL; what the clock had signed
// for the future is signed again once it is right.
func TestWrongClockPrunesNothing(t *testing.T) {
	const ahead = 2 * 365 * day
	for name, wrong := range map[string]func(c *calendar, restart, care func()){
		"while it runs": func(c *calendar, _, care func()) {
			c.step(ahead)
			care()
			c.pass(25 * time.Hour)
			care()
			c.pass(40 * day)
			care()
		},
		"after a day": func(c *calendar, _, care func()) {
			c.pass(25 * time.Hour)
			care()
			c.step(ahead)
			care()
			c.pass(25 * time.Hour)
			care()
		},
		"at the start": func(c *calendar, restart, care func()) {
			c.step(ahead)
			restart()
			care()
			c.pass(23 * time.Hour)
			care()
		},
		"at each of many starts": func(c *calendar, restart, care func()) {
			c.step(ahead)
			for range 5 {
				restart()
				care()
				c.pass(23 * time.Hour)
				care()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := create(t, directory.CreateOptions{Key: ca.ECP256})
			clock := newCalendar()
			o := directory.Options{Now: clock.now, Uptime: clock.uptime}
			a := open(t, dir, o)
			r := request(t, a, "web.example.com")
			r.TTL = 365 * day
			cert, err := a.Sign(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			revoke(t, a, target(cert))
			wrong(clock, func() { a = reopen(t, a, dir, o) }, func() { care(t, a) })
			revoke(t, a, ca.Target{Serial: "0A0B"}) // a CRL of the wrong time, in any case
			clock.step(-ahead)
			care(t, a)
			number := ownCRL(t, dir).number()
			ownCRL(t, dir).expect(number, target(cert).Serial, "0A0B")
			if crl := readCRLs(t, filepath.Join(dir, "ca_crl.pem"))[0]; crl.ThisUpdate.After(clock.now()) {
				t.Errorf("the CRL begins at %v, now is %v", crl.ThisUpdate, clock.now())
			}
			care(t, a)
			ownCRL(t, dir).expect(number, target(cert).Serial, "0A0B")
		})
	}
}

// TestPruningWaitsADay after each start.
func TestPruningWaitsADay(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	clock := newCalendar()
	o := directory.Options{Now: clock.now, Uptime: clock.uptime}
	a := open(t, dir, o)
	ended := target(sign(t, a, "web.example.com"))
	revoke(t, a, ended)
	clock.pass(60 * day)
	revoke(t, a, ca.Target{Serial: "0A0B"}) // a CRL after its end
	a = reopen(t, a, dir, o)
	for _, step := range []struct {
		pass   time.Duration
		number int64
		listed []node.Serial
	}{
		{0, 2, []node.Serial{ended.Serial, "0A0B"}},
		{day - time.Second, 2, []node.Serial{ended.Serial, "0A0B"}},
		{time.Second, 3, []node.Serial{"0A0B"}},
	} {
		clock.pass(step.pass)
		care(t, a)
		ownCRL(t, dir).expect(step.number, step.listed...)
	}
}
