package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// life goes through one registration as the registry writes it, from the
// request to the receipt, and returns what is left.
func (f *fixture) life(name node.Certname, uid node.UID, serial node.Serial, ended time.Time) (node.Node, []node.Certificate, []node.Revocation) {
	f.t.Helper()
	ctx := f.t.Context()
	n := node.Node{
		Certname: name, UID: uid, State: node.Issuing, Groups: []string{"base"},
		Labels: map[string]string{"team": "x"}, Owner: "token:ci",
	}
	request := node.Request{ID: "request/" + string(uid), Principal: "token:ci", Certname: name, UID: uid}
	n.Requests = []string{request.Key()}
	f.do(func(c *store.Change) {
		c.PutNode(nil, n)
		c.PutIntent(node.IssueIntent{UID: uid, Certname: name, Serial: serial})
		c.PutRequest(request)
	})
	intent, open, err := f.Intent(ctx, uid)
	check(f.t, err)
	if !open {
		f.t.Fatalf("%s has no intent", uid)
	}
	old := f.node(name)
	n.State, n.Serials = node.Provisioned, []node.Serial{serial}
	f.do(func(c *store.Change) {
		c.PutNode(&old, n)
		c.RemoveIntent(intent)
		c.PutCertificate(node.Certificate{Serial: serial, Certname: name, UID: uid, Owner: n.Owner, PEM: "pem"})
	})
	live, cert := f.node(name), must(f.Certificate(ctx, serial))(f.t)
	n.State, n.TerminatedAt = node.Terminated, ended
	rev := node.Revocation{ID: "rev-" + string(uid), Serial: serial, Certname: name, UID: uid, Owner: n.Owner}
	f.do(func(c *store.Change) {
		c.RemoveNode(live)
		c.PutTombstone(n)
		cert.Revocation = rev.ID
		c.PutCertificate(cert)
		c.PutRevocation(rev)
	})
	f.keys(string(name), "ix/pending/", rev.ID)
	rev, cert = must(f.RevocationsOf(ctx, name, uid))(f.t)[0], must(f.Certificate(ctx, serial))(f.t)
	rev.Receipt = &node.Receipt{Serial: serial, CRLNumber: "7", PublishedAt: ended}
	cert.Receipt = rev.Receipt
	f.do(func(c *store.Change) { c.PutRevocation(rev); c.PutCertificate(cert) })
	f.keys(string(name), "ix/pending/")
	return must(f.Tombstone(ctx, name, uid))(f.t), must(f.CertificatesOfLife(ctx, name, uid))(f.t), must(f.RevocationsOf(ctx, name, uid))(f.t)
}

// After its time, a registration leaves nothing behind; what other lives of
// the same name left stays.
func TestForgetLeavesNothing(t *testing.T) {
	f := newFixture(t)
	f.putGroup("base")
	f.life("web01", "u1", "0001", t0)
	f.put(node.Node{Certname: "web01", UID: "u3", Groups: []string{"base"}})
	other := f.node("web01")
	f.do(func(c *store.Change) { c.RemoveNode(other) })
	before := f.dump()

	n, certs, revs := f.life("web01", "u2", "0002", t0.Add(time.Hour))
	f.do(func(c *store.Change) { c.PutCertificate(certs[0]) })
	forget := func(c *store.Change) {
		for _, key := range n.Requests {
			c.RemoveRequest(key)
		}
		for _, cert := range certs {
			c.RemoveCertificate(cert)
		}
		for _, rev := range revs {
			c.RemoveRevocation(rev)
		}
		c.RemoveTombstone(n)
	}
	f.stale("a certificate changed since", forget)
	certs = must(f.CertificatesOfLife(t.Context(), "web01", "u2"))(t)
	f.do(forget)

	after := f.dump()
	for _, mark := range []string{"mark/set/base", "mark/sets"} { // their revisions moved
		delete(before, mark)
		delete(after, mark)
	}
	equal(t, "keys and revisions", after, before)
}

func all(node.Node) bool { return true }

func TestTombstones(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	if _, err := f.LastTombstone(ctx, "web01", all); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("LastTombstone of none: %v", err)
	}
	f.life("web01", "u1", "0001", t0.Add(2*time.Hour))
	f.life("web01", "u2", "0002", t0.Add(time.Hour)) // the clock went back
	f.life("web0", "u9", "0009", t0.Add(3*time.Hour))
	equal(t, "last of web01", must(f.LastTombstone(ctx, "web01", all))(t).UID, node.UID("u2"))
	first := must(f.LastTombstone(ctx, "web01", func(n node.Node) bool { return n.UID != "u2" }))(t)
	equal(t, "last of web01 that counts", first.UID, node.UID("u1"))
	equal(t, "first of web01", must(f.Tombstone(ctx, "web01", "u1"))(t).State, node.Terminated)
	if _, err := f.Tombstone(ctx, "web01", "u9"); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("Tombstone of another name: %v", err)
	}
	for _, test := range []struct {
		before time.Time
		want   string
	}{
		{t0, "[]"},
		{t0.Add(time.Hour), "[]"}, // before, not at
		{t0.Add(time.Hour + time.Second), "[u2]"},
		{t0.Add(24 * time.Hour), "[u2 u1 u9]"},
		{t0.Add(24 * time.Hour).In(time.FixedZone("east", 14*3600)), "[u2 u1 u9]"},
	} {
		var uids []node.UID
		for _, n := range collect(t, f.TombstonesBefore(ctx, test.before)) {
			uids = append(uids, n.UID)
		}
		equal(t, test.before.String(), fmt.Sprint(uids), test.want)
	}
}

func TestIntentGuards(t *testing.T) {
	f := newFixture(t)
	intent := node.IssueIntent{UID: "u1", Certname: "web01"}
	if _, open, err := f.Intent(t.Context(), "u1"); open || err != nil {
		t.Errorf("no intent: %v, %v", open, err)
	}
	f.do(func(c *store.Change) { c.PutIntent(intent); c.PutIntent(node.IssueIntent{UID: "u2"}) })
	f.stale("a second intent of one registration", func(c *store.Change) { c.PutIntent(intent) })
	all := collect(t, f.Intents(t.Context()))
	equal(t, "intents", []node.UID{all[0].UID, all[1].UID}, []node.UID{"u1", "u2"})
	for range f.Intents(t.Context()) { // one may stop early
		break
	}
	f.do(func(c *store.Change) { c.RemoveIntent(all[0]) })
	f.stale("settled twice", func(c *store.Change) { c.RemoveIntent(all[0]) })
	f.keys("settled", "issue/", "u2")
}

func TestRequestGuards(t *testing.T) {
	f := newFixture(t)
	r := node.Request{ID: "apply/7", Hash: "h", UID: "u1"}
	if _, known, err := f.Request(t.Context(), r.ID); known || err != nil {
		t.Errorf("new request: %v, %v", known, err)
	}
	f.do(func(c *store.Change) { c.PutRequest(r) })
	f.stale("one request id twice", func(c *store.Change) { c.PutRequest(r) })
	got, known, err := f.Request(t.Context(), r.ID)
	r.Revision = got.Revision
	equal(t, "request", []any{got, known, err}, []any{r, true, nil})
	f.do(func(c *store.Change) { c.RemoveRequest(r.ID) })
	f.keys("removed", "request/")
}

func TestCertificates(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	for i, owner := range []node.Certname{"web01", "web01", "web0", "web01"} {
		f.do(func(c *store.Change) {
			c.PutCertificate(node.Certificate{Serial: node.Serial(fmt.Sprintf("%04X", i)), Certname: owner, UID: node.UID(fmt.Sprint("u", 9-i))})
		})
	}
	cert := must(f.Certificate(ctx, "0001"))(t)
	f.stale("one serial twice", func(c *store.Change) { c.PutCertificate(node.Certificate{Serial: "0001", Certname: "web02"}) })
	f.do(func(c *store.Change) { c.PutCertificate(cert) })
	f.stale("changed since", func(c *store.Change) { c.PutCertificate(cert) })
	if _, err := f.Certificate(ctx, "00FF"); !errors.Is(err, node.ErrCertificateNotFound) {
		t.Errorf("no certificate: %v", err)
	}
	serials := func(list func(after string, limit int) (store.Page[node.Certificate], error), limit int) (all []node.Serial) {
		for after := ""; ; {
			page, err := list(after, limit)
			check(t, err)
			for _, c := range page.Items {
				all = append(all, c.Serial)
			}
			if after = page.Next; after == "" {
				return all
			}
		}
	}
	for limit := 1; limit <= 5; limit++ {
		equal(t, "all", serials(func(after string, n int) (store.Page[node.Certificate], error) {
			return f.Certificates(ctx, after, n)
		}, limit), []node.Serial{"0000", "0001", "0002", "0003"})
		equal(t, "of web01, in order of registration", serials(func(after string, n int) (store.Page[node.Certificate], error) {
			return f.CertificatesOf(ctx, "web01", after, n)
		}, limit), []node.Serial{"0003", "0001", "0000"})
	}
}

// Those of one registration are found by their keys: no other life's is read.
func TestCertificatesOfLife(t *testing.T) {
	f := newFixture(t)
	for i, of := range []struct {
		name node.Certname
		uid  node.UID
	}{{"web01", "u1"}, {"web01", "u10"}, {"web01", "u1"}, {"web0", "u1"}, {"web01", "u0"}} {
		f.do(func(c *store.Change) {
			c.PutCertificate(node.Certificate{Serial: node.Serial(fmt.Sprintf("%04X", i)), Certname: of.name, UID: of.uid})
		})
	}
	for uid, want := range map[node.UID]string{"u1": "[0000 0002]", "u10": "[0001]", "u0": "[0004]", "u": "[]"} {
		var serials []node.Serial
		for _, cert := range must(f.CertificatesOfLife(t.Context(), "web01", uid))(t) {
			serials = append(serials, cert.Serial)
			stored := must(f.Certificate(t.Context(), cert.Serial))(t)
			equal(t, "certificate", cert, stored)
		}
		equal(t, "serials of "+string(uid), fmt.Sprint(serials), want)
	}
}

// Revocations are done oldest first, and one is pending until its receipt is stored.
func TestPending(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	for _, id := range []string{"2", "1", "3"} {
		f.do(func(c *store.Change) {
			c.PutRevocation(node.Revocation{ID: id, Certname: "web01", UID: "u1", Serial: "0001"})
		})
	}
	ids := func(revs []node.Revocation, err error) (ids string) {
		check(t, err)
		for _, r := range revs {
			ids += r.ID
		}
		return ids
	}
	equal(t, "all", ids(f.Pending(ctx, "", 10)), "123")
	equal(t, "two", ids(f.Pending(ctx, "", 2)), "12")
	one, err := f.Revocation(ctx, "1")
	check(t, err)
	one.Receipt = &node.Receipt{Serial: "0001", CRLNumber: "1"}
	f.do(func(c *store.Change) { c.PutRevocation(one) })
	f.stale("a second receipt", func(c *store.Change) { c.PutRevocation(one) })
	f.stale("one id twice", func(c *store.Change) { c.PutRevocation(node.Revocation{ID: "2"}) })
	equal(t, "pending", ids(f.Pending(ctx, "", 10)), "23")
	equal(t, "of the registration", ids(f.RevocationsOf(ctx, "web01", "u1")), "123")
	equal(t, "of another", ids(f.RevocationsOf(ctx, "web01", "u2")), "")
}

// espm-enc finds the settings in the store while the daemon is down.
func TestENCSettings(t *testing.T) {
	f := newFixture(t)
	if _, err := f.ENC(t.Context()); !errors.Is(err, store.ErrNoKey) {
		t.Errorf("before the first start: %v", err)
	}
	want := store.ENCSettings{UnknownNodes: "command", Command: "/bin/enc -v"}
	check(t, f.SetENC(t.Context(), store.ENCSettings{UnknownNodes: "fail"}))
	check(t, f.SetENC(t.Context(), want))
	equal(t, "settings", must(f.ENC(t.Context()))(t), want)
}

// A list longer than what is read at once comes whole and in order.
func TestLongLists(t *testing.T) {
	f := newFixture(t)
	const many = 1203
	const some = 100 // to a commit
	for first := 0; first < many; first += some {
		f.do(func(c *store.Change) {
			for i := first; i < min(first+some, many); i++ {
				c.PutNode(nil, node.Node{Certname: node.Certname(fmt.Sprintf("n%05d", i)), Groups: []string{"g"}})
			}
		})
	}
	members := collect(t, f.Members(t.Context(), "g"))
	equal(t, "members", []any{len(members), members[0], members[many-1]}, []any{many, node.Certname("n00000"), node.Certname("n01202")})
}
