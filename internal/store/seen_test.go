package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

func (f *fixture) lastSeen(name node.Certname, uid node.UID) time.Time {
	f.t.Helper()
	return must(f.LastSeen(f.t.Context(), name, uid))(f.t)
}

func TestPutSeen(t *testing.T) {
	f := newFixture(t)
	f.put(node.Node{Certname: "web01", UID: "u1"}, node.Node{Certname: "web02", UID: "u2"})
	one, two := f.node("web01"), f.node("web02")
	equal(t, "never seen", f.lastSeen("web01", "u1"), time.Time{})
	both := []store.Seen{
		{Certname: "web01", UID: "u1", At: t0, NodeRevision: one.Revision},
		{Certname: "web02", UID: "u2", At: t0.Add(time.Hour), NodeRevision: two.Revision},
	}
	check(t, f.PutSeen(t.Context(), both))
	equal(t, "web01", f.lastSeen("web01", "u1"), t0)
	equal(t, "web02", f.lastSeen("web02", "u2"), t0.Add(time.Hour))
	equal(t, "another life", f.lastSeen("web01", "u2"), time.Time{})
	equal(t, "nodes", []node.Node{f.node("web01"), f.node("web02")}, []node.Node{one, two})

	// All or none, and none for a node that changed or went.
	f.put(node.Node{Certname: "web02", UID: "u2", Labels: map[string]string{"a": "b"}})
	both[0].At = t0.Add(2 * time.Hour)
	if err := f.PutSeen(t.Context(), both); !errors.Is(err, node.ErrStale) {
		t.Errorf("a node that changed: %v", err)
	}
	equal(t, "web01", f.lastSeen("web01", "u1"), t0)
	f.do(func(c *store.Change) { c.RemoveNode(one) })
	f.keys("after the node went", "seen/", "web02")
	if err := f.PutSeen(t.Context(), both[:1]); !errors.Is(err, node.ErrStale) {
		t.Errorf("a node that went: %v", err)
	}
	f.keys("after the node went", "seen/", "web02")
}

func TestUnclaimed(t *testing.T) {
	f := newFixture(t)
	f.put(
		node.Node{Certname: "late", UID: "u1", ClaimBy: t0.Add(time.Hour)},
		node.Node{Certname: "early", UID: "u2", ClaimBy: t0.In(time.FixedZone("east", 14*3600))},
		node.Node{Certname: "claimed", UID: "u3", ClaimBy: t0, ClaimedAt: t0},
		node.Node{Certname: "without", UID: "u4"},
	)
	open := func() (names []node.Certname) {
		for _, n := range collect(t, f.Unclaimed(t.Context())) {
			names = append(names, n.Certname)
		}
		return names
	}
	equal(t, "open", open(), []node.Certname{"early", "late"})
	claimed := f.node("early")
	claimed.ClaimedAt = t0
	f.put(claimed)
	equal(t, "one is claimed", open(), []node.Certname{"late"})
	later := f.node("late")
	later.ClaimBy = t0.Add(2 * time.Hour)
	f.put(later)
	f.keys("moved", "ix/claim/", "2026-01-02T05:04:05Z/late")
	last := f.node("late")
	f.do(func(c *store.Change) { c.RemoveNode(last) })
	equal(t, "gone", open(), []node.Certname(nil))
	f.keys("gone", "ix/claim/")
}
