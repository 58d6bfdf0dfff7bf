package store_test

import (
	"fmt"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// owned are the names of one owner's nodes, certificates and revocations.
func (f *fixture) owned(owner string) (nodes, serials, revs []string) {
	f.t.Helper()
	ctx := f.t.Context()
	nodes = f.names(store.NodeFilter{Owner: owner}, 2)
	for after := ""; ; {
		page := must(f.CertificatesOwned(ctx, owner, "", after, 2))(f.t)
		for _, c := range page.Items {
			serials = append(serials, string(c.Serial))
		}
		if after = page.Next; after == "" {
			break
		}
	}
	for after := ""; ; {
		page := must(f.Revocations(ctx, store.RevocationFilter{Owner: owner}, after, 2))(f.t)
		for _, r := range page.Items {
			revs = append(revs, r.ID)
		}
		if after = page.Next; after == "" {
			return nodes, serials, revs
		}
	}
}

// The keys of one owner never stand among those of another, however they are called.
func TestOwners(t *testing.T) {
	f := newFixture(t)
	owners := []string{"a", "a/b", "a/b/c", "a%2Fb", "a%", "b"}
	for i, owner := range owners {
		for j := range 3 {
			name := node.Certname(fmt.Sprintf("n%d%d", i, j))
			uid, serial, id := node.UID("u"+name), node.Serial(fmt.Sprintf("00%d%d", i, j)), "r"+string(name)
			f.put(node.Node{Certname: name, UID: uid, Owner: owner, Labels: map[string]string{"k": "v"}})
			f.do(func(c *store.Change) {
				c.PutCertificate(node.Certificate{Serial: serial, Certname: name, UID: uid, Owner: owner})
				c.PutRevocation(node.Revocation{ID: id, Serial: serial, Certname: name, UID: uid, Owner: owner})
			})
		}
	}
	f.put(node.Node{Certname: "nobodys", Labels: map[string]string{"k": "v"}})
	for i, owner := range owners {
		nodes, serials, revs := f.owned(owner)
		want := func(format string) (all []string) {
			for j := range 3 {
				all = append(all, fmt.Sprintf(format, i, j))
			}
			return all
		}
		equal(t, "nodes of "+owner, nodes, want("n%d%d"))
		equal(t, "certificates of "+owner, serials, want("00%d%d"))
		equal(t, "revocations of "+owner, revs, want("rn%d%d"))
	}
	equal(t, "with a label", f.names(store.NodeFilter{Owner: "a", Labels: map[string]string{"k": "v"}}, 1), []string{"n00", "n01", "n02"})
	equal(t, "with another", f.names(store.NodeFilter{Owner: "a", Labels: map[string]string{"k": "w"}}, 1), []string(nil))
	page := must(f.CertificatesOwned(t.Context(), "a", "n01", "", 10))(t)
	equal(t, "of one name", []any{len(page.Items), page.Items[0].Serial}, []any{1, node.Serial("0001")})
}

// What is given leaves no key of its old owner, and no key at all where it is nobody's.
func TestGive(t *testing.T) {
	f := newFixture(t)
	f.put(node.Node{Certname: "web01", UID: "u1", Owner: "a"})
	f.do(func(c *store.Change) {
		c.PutCertificate(node.Certificate{Serial: "0001", Certname: "web01", UID: "u1", Owner: "a"})
		c.PutRevocation(node.Revocation{ID: "r1", Serial: "0001", Certname: "web01", UID: "u1", Owner: "a"})
	})
	for _, to := range []string{"b", "b", ""} {
		n := f.node("web01")
		n.Owner = to
		cert, rev := must(f.Certificate(t.Context(), "0001"))(t), must(f.Revocation(t.Context(), "r1"))(t)
		f.put(n)
		f.do(func(c *store.Change) {
			c.SetCertificateOwner(cert, to)
			c.SetRevocationOwner(rev, to)
		})
		var keys [3][]string
		if to != "" {
			keys = [3][]string{{to + "/web01"}, {to + "/web01/u1/0001"}, {to + "/r1"}}
		}
		f.keys("nodes", "ix/node-owner/", keys[0]...)
		f.keys("certificates", "ix/cert-owner/", keys[1]...)
		f.keys("revocations", "ix/revocation-owner/", keys[2]...)
		equal(t, "owner", must(f.Certificate(t.Context(), "0001"))(t).Owner, to)
	}
	n := f.node("web01")
	n.Owner = "a"
	f.put(n)
	f.do(func(c *store.Change) { c.RemoveNode(f.node("web01")) })
	f.keys("terminated", "ix/node-owner/")
}

// What changed hands after the watch had read that it changed is not told to who had it.
func TestWatchNodesOfOneOwner(t *testing.T) {
	f := newFixture(t)
	f.put(node.Node{Certname: "other", Owner: "a/b"})
	f.put(node.Node{Certname: "n1", Owner: "a"}, node.Node{Certname: "n2", Owner: "a"}, node.Node{Certname: "n3", Owner: "a"})
	f.do(func(c *store.Change) { c.RemoveNode(f.node("other")) })
	var told []string
	for ev, err := range f.WatchNodesOf(t.Context(), "a", 0) {
		check(t, err)
		if len(told) == 0 { // n2 and n3 are read already
			n := f.node("n2")
			n.Owner = "b"
			f.put(n)
			n = f.node("n3")
			n.State = node.Issuing
			f.put(n)
		}
		if ev.Node == nil {
			told = append(told, string(ev.Certname)+" gone")
		} else {
			told = append(told, string(ev.Certname)+" "+ev.Node.Owner+" "+string(ev.Node.State))
			equal(t, "revision", ev.Revision, ev.Node.Revision)
		}
		if len(told) == 3 {
			break
		}
	}
	equal(t, "told", told, []string{"n1 a ", "n2 gone", "n3 a issuing"})
}
