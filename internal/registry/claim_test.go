package registry_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// grace is what a node that may have been missed has after a start.
const grace = 35 * time.Minute

// launching is a fixture whose registry has looked at its clock, and whose clock can be set.
type launching struct {
	*fixture
	began time.Time
	set   time.Duration // by so much, in all
}

func newLaunching(t *testing.T) *launching {
	f := &launching{fixture: newFixture(t)}
	f.began = f.clock.Now()
	f.options.Uptime = func() time.Duration { return f.clock.Now().Sub(f.began) - f.set }
	f.restart()
	f.check(t)
	return f
}

// setClock sets the clock, while no time passes.
func (f *launching) setClock(d time.Duration) {
	f.clock.advance(d)
	f.set += d
}

// check has the registry look at the deadlines, and returns when it wants to look again.
func (f *launching) check(t *testing.T) time.Duration {
	t.Helper()
	next, err := f.EndLaunches(self(t))
	if err != nil || next <= 0 || next > time.Minute {
		t.Fatalf("look again in %v, %v", next, err)
	}
	return next
}

// after lets time pass as the daemon does: with a look at least once a minute.
func (f *launching) after(t *testing.T, d time.Duration) {
	t.Helper()
	for d > 0 {
		step := min(d, f.check(t))
		f.clock.advance(step)
		d -= step
	}
	f.check(t)
}

func (f *launching) launch(t *testing.T, name node.Certname, within time.Duration) node.Node {
	t.Helper()
	p, err := f.Provision(self(t), node.Node{Certname: name, ClaimWithin: within}, registry.Spec{}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	return p.Node
}

// open counts the keys of the index of open deadlines.
func (f *launching) open(t *testing.T) int {
	t.Helper()
	recs, _, err := f.engine.List(self(t), "ix/claim/", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	return len(recs)
}

// lives checks whether a node lives, and has been claimed.
func (f *launching) lives(t *testing.T, n node.Node, lives, claimed bool) {
	t.Helper()
	now, err := f.Get(self(t), n.Certname, n.UID)
	if err != nil {
		t.Fatal(err)
	}
	if (now.State != node.Terminated) != lives || !now.ClaimedAt.IsZero() != claimed {
		t.Errorf("%s is %s, claimed at %v; want it to live: %v, claimed: %v", n.Certname, now.State, now.ClaimedAt, lives, claimed)
	}
	if now.State == node.Terminated && now.TerminatedFor != "not claimed by "+n.ClaimBy.Format(time.RFC3339) {
		t.Errorf("%s was terminated for %q", n.Certname, now.TerminatedFor)
	}
}

func TestClaimedInTime(t *testing.T) {
	f := newLaunching(t)
	n := f.launch(t, "web1.test", 30*time.Minute)
	if want := n.CreatedAt.Add(30 * time.Minute); n.ClaimBy.Sub(want).Abs() > time.Second || f.open(t) != 1 {
		t.Errorf("the deadline is %v, want %v", n.ClaimBy, want)
	}
	f.after(t, 29*time.Minute)
	at := f.look(t, "web1.test")
	f.restart() // killed before any flush
	f.lives(t, n, true, true)
	f.seen(t, "web1.test", at)
	if f.open(t) != 0 {
		t.Error("the deadline is still in the index")
	}
	before, _ := f.store.Node(self(t), "web1.test")
	f.after(t, 24*time.Hour)
	f.look(t, "web1.test")
	f.lives(t, n, true, true)
	if after, _ := f.store.Node(self(t), "web1.test"); after.Revision != before.Revision || !after.ClaimedAt.Equal(at) {
		t.Errorf("the second look-up changed the node: %+v", after)
	}
}

func TestNotClaimedInTime(t *testing.T) {
	f := newLaunching(t)
	other := f.provision(t, "other.test", "").Node // without a deadline
	n := f.launch(t, "web1.test", 30*time.Minute)
	late := f.launch(t, "late.test", 31*time.Minute)
	f.after(t, n.ClaimBy.Sub(f.clock.Now())-time.Millisecond)
	f.lives(t, n, true, false)
	f.after(t, time.Millisecond)
	f.lives(t, n, false, false)
	f.lives(t, late, true, false)
	f.lives(t, other, true, false)
	if _, err := f.Get(self(t), "web1.test", ""); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("the classifier has it still: %v", err)
	}
	if f.open(t) != 1 {
		t.Errorf("%d deadlines are open", f.open(t))
	}
	f.run(t)
	f.drain(t)
	if !f.revoked(t)[n.Newest()] || f.revoked(t)[late.Newest()] {
		t.Errorf("the CRL has %v, want %s", f.revoked(t), n.Newest())
	}
	if done, err := f.Terminate(self(t), registry.TerminateRequest{Certname: "web1.test", UID: n.UID}, 0, false); err != nil || !strings.HasPrefix(done.Node.TerminatedFor, "not claimed by ") {
		t.Errorf("a terminate by the caller: %+v, %v", done.Node, err)
	}
	again := f.launch(t, "web1.test", time.Minute) // the name is free, and its life another
	f.lives(t, again, true, false)
}

// The daemon looks at the deadlines by itself.
func TestRunEndsLaunches(t *testing.T) {
	f := newLaunching(t)
	n := f.launch(t, "web1.test", time.Minute)
	rev, err := f.store.Revision(self(t))
	if err != nil {
		t.Fatal(err)
	}
	f.clock.advance(2 * time.Minute)
	f.run(t)
	ctx, cancel := context.WithTimeout(self(t), time.Minute)
	defer cancel()
	for ev, err := range f.store.WatchNodes(ctx, rev) {
		if err != nil || ev.Certname == "web1.test" && ev.Node == nil {
			break
		}
	}
	f.lives(t, n, false, false)
}

// While the daemon is down espm-enc answers from the file, and nobody counts.
func TestDaemonDownDuringTheFirstCatalog(t *testing.T) {
	for _, returns := range []bool{true, false} {
		f := newLaunching(t)
		n := f.launch(t, "web1.test", 30*time.Minute)
		f.clock.advance(10 * time.Minute)
		if a, _ := enc.Ask(self(t), f.store.View, enc.Unknown{}, "web1.test", false); a.Status != enc.StatusYAML {
			t.Fatal(a.Text)
		}
		f.clock.advance(2 * time.Hour) // it passes while the daemon is down
		f.began = f.clock.Now()
		f.restart()
		f.after(t, 0)
		f.lives(t, n, true, false)
		f.after(t, 31*time.Minute) // the agent's next run
		if returns {
			f.look(t, "web1.test")
		}
		f.after(t, 3*time.Minute)
		f.lives(t, n, true, returns)
		fresh := f.launch(t, "fresh.test", 30*time.Second+time.Minute) // no reason to put that off
		f.after(t, 2*time.Minute)
		f.lives(t, n, returns, returns)
		f.lives(t, fresh, false, false)
		f.after(t, time.Hour)
		f.lives(t, n, returns, returns)
	}
}

// A deadline that is still far when the daemon starts is kept as it is.
func TestRestartKeepsALateDeadline(t *testing.T) {
	f := newLaunching(t)
	n := f.launch(t, "web1.test", 2*time.Hour)
	f.began = f.clock.Now()
	f.restart()
	f.after(t, n.ClaimBy.Sub(f.clock.Now())-time.Second)
	f.lives(t, n, true, false)
	f.after(t, time.Second)
	f.lives(t, n, false, false)
}

// A longer interval of the site's agents is waited for.
func TestRunIntervalIsWaitedFor(t *testing.T) {
	f := newLaunching(t)
	n := f.launch(t, "web1.test", time.Minute)
	f.options.RunInterval = 4 * time.Hour
	f.restart()
	f.after(t, 4*time.Hour+4*time.Minute)
	f.lives(t, n, true, false)
	f.after(t, time.Minute)
	f.lives(t, n, false, false)
}

func TestClockIsSet(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, 1000 * time.Hour, 10 * time.Second} {
		f := newLaunching(t)
		n := f.launch(t, "web1.test", time.Minute)
		f.after(t, 55*time.Second)
		f.setClock(by) // forward: time to come is not time that has passed
		f.after(t, grace-time.Second)
		f.lives(t, n, true, false)
		f.after(t, time.Second)
		f.lives(t, n, false, false)
	}
	f := newLaunching(t)
	n := f.launch(t, "web1.test", time.Minute)
	f.after(t, 30*time.Second)
	f.setClock(-time.Hour)
	f.after(t, time.Hour)
	f.lives(t, n, true, false)
	f.after(t, 31*time.Second)
	f.lives(t, n, false, false)

	n = f.launch(t, "web2.test", time.Minute)
	for range 120 { // slewed by a clock daemon, that is no step
		f.setClock(30 * time.Millisecond)
		f.after(t, 500*time.Millisecond)
	}
	f.lives(t, n, false, false)
}

// A retry has the first deadline, also where it gets a new certificate.
func TestRetryKeepsTheDeadline(t *testing.T) {
	f := newLaunching(t)
	provision := func(within time.Duration) (registry.Provisioned, error) {
		return f.Provision(self(t), node.Node{Certname: "web1.test", ClaimWithin: within}, registry.Spec{}, "r1", false)
	}
	first, err := provision(30 * time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	f.after(t, 20*time.Minute)
	f.restart() // the answer is forgotten
	again, err := provision(30 * time.Minute)
	if err != nil || again.Node.Newest() == first.Node.Newest() || !again.Node.ClaimBy.Equal(first.Node.ClaimBy) || f.open(t) != 1 {
		t.Errorf("the retry: %+v, %v", again.Node, err)
	}
	for _, within := range []time.Duration{0, 31 * time.Minute} {
		if _, err := provision(within); !errors.Is(err, node.ErrRequestReused) {
			t.Errorf("other content: %v", err)
		}
	}
}

func TestFailedProvisionLeavesNoDeadline(t *testing.T) {
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			f := newLaunching(t)
			f.run(t)
			f.failSign(fault.applied)
			_, err := f.Provision(self(t), node.Node{Certname: "web1.test", ClaimWithin: time.Hour}, registry.Spec{}, "", false)
			if !errors.Is(err, node.ErrUnavailable) {
				t.Fatalf("got %v", err)
			}
			f.drain(t)
			if f.open(t) != 0 {
				t.Error("the deadline stayed")
			}
		})
	}
}

func TestAdoptedCertificateKeepsTheDeadline(t *testing.T) {
	f := newLaunching(t)
	f.failSign(true)
	_, err := f.Provision(self(t), node.Node{Certname: "web1.test", ClaimWithin: time.Hour}, registry.Spec{CSRPEM: newCSR(t, "web1.test")}, "r1", false)
	if err == nil {
		t.Fatal("the answer was not lost")
	}
	f.authority.heal()
	f.run(t)
	f.drain(t)
	n, err := f.Get(self(t), "web1.test", "")
	if err != nil || n.State != node.Provisioned || !n.ClaimBy.Equal(n.CreatedAt.Add(time.Hour).Round(time.Second)) || f.open(t) != 1 {
		t.Errorf("adopted: %+v, %v", n, err)
	}
}

func TestDeadlineOfAProtectedNode(t *testing.T) {
	f := newLaunching(t)
	_, err := f.Provision(self(t), node.Node{Certname: "puppet.test", ClaimWithin: time.Hour}, registry.Spec{}, "", true)
	if !errors.Is(err, node.ErrProtected) {
		t.Errorf("got %v", err)
	}
	n := f.launch(t, "web1.test", time.Minute)
	f.options.Protected = append(f.options.Protected, "web1.test") // by now
	f.restart()
	f.after(t, time.Hour)
	f.lives(t, n, true, false)
	if f.open(t) != 0 {
		t.Error("the deadline is still there")
	}
}

func TestBoundsOfTheDeadline(t *testing.T) {
	f := newLaunching(t)
	for _, within := range []time.Duration{-time.Hour, time.Nanosecond, time.Minute - 1, 30*24*time.Hour + 1} {
		_, err := f.Provision(self(t), node.Node{Certname: "web1.test", ClaimWithin: within}, registry.Spec{}, "", true)
		if !errors.Is(err, node.ErrInvalid) || !strings.Contains(err.Error(), "claim_within: from 1m to 30d") {
			t.Errorf("%v: got %v", within, err)
		}
	}
	f.launch(t, "web1.test", time.Minute)
	f.launch(t, "web2.test", 30*24*time.Hour)
}
