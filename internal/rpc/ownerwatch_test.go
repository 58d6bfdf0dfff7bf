package rpc

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// A provisioner's watch tells of its own nodes alone, and misses none of them: what is
// not told is shown by what comes next.
func TestWatchOfOwnNodes(t *testing.T) {
	r := newRig(t)
	a, b := r.as(t, provisioner("token:a")), r.as(t, provisioner("token:b"))
	rev, err := r.store.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wa, wb := a.watch(t, rev), b.watch(t, rev)
	a.register(t, &espmv1.Node{Certname: "web1.test"})
	r.register(t, &espmv1.Node{Certname: "admins.test"})
	a.terminate(t, "web1.test")
	// The same name lives again as another's.
	b.register(t, &espmv1.Node{Certname: "web1.test"})
	if _, err := b.nodes.UpdateNode(t.Context(), update("labels", &espmv1.Node{Certname: "web1.test", Labels: map[string]string{"k": "v"}})); err != nil {
		t.Fatal(err)
	}
	last := a.register(t, &espmv1.Node{Certname: "web2.test"})

	// a: web1 comes (unless it was gone when the event was read), goes, web2 comes.
	ev := next(t, wa)
	if ev.GetNode() != nil {
		if ev.GetCertname() != "web1.test" || ev.GetNode().GetOwner() != "token:a" {
			t.Errorf("a is told %v", ev)
		}
		ev = next(t, wa)
	}
	gone := ev
	if gone.GetCertname() != "web1.test" || gone.GetNode() != nil {
		t.Errorf("a is told %v, want that web1.test is gone", gone)
	}
	for what, w := range map[string]watch{"going on": wa, "resumed": a.watch(t, gone.GetRevision())} {
		if ev := next(t, w); ev.GetNode().GetUid() != last.GetUid() || ev.GetRevision() != last.GetRevision() {
			t.Errorf("%s: a is told %v, want %v", what, ev, last)
		}
	}
	for ev := next(t, wb); ; ev = next(t, wb) { // whether it sees the node before its update is not fixed
		if ev.GetCertname() != "web1.test" || ev.GetNode().GetOwner() != "token:b" {
			t.Fatalf("b is told %v", ev)
		}
		if ev.GetNode().GetLabels()["k"] == "v" {
			break
		}
	}

	// One that is given away goes for one and comes for the other.
	if _, err := r.nodes.UpdateNode(t.Context(), update("owner", &espmv1.Node{Certname: "web2.test", Owner: "token:b"})); err != nil {
		t.Fatal(err)
	}
	if ev := next(t, wa); ev.GetCertname() != "web2.test" || ev.GetNode() != nil {
		t.Errorf("a is told %v, want that web2.test is gone", ev)
	}
	if ev := next(t, wb); ev.GetCertname() != "web2.test" || ev.GetNode().GetOwner() != "token:b" {
		t.Errorf("b is told %v, want web2.test", ev)
	}
}

// A provision that fails comes and goes without a tombstone: its owner's watch tells that, too.
func TestWatchOfAFailedProvision(t *testing.T) {
	r := newRig(t)
	a := r.as(t, provisioner("token:a"))
	rev, err := r.store.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := a.watch(t, rev)
	r.fail(func(context.Context) error {
		if ev := next(t, w); ev.GetNode().GetState() != espmv1.NodeState_NODE_STATE_ISSUING {
			t.Errorf("got %v", ev)
		}
		return errors.New("no")
	})
	if _, err := a.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "web1.test"}}); err == nil {
		t.Fatal("it is provisioned")
	}
	if ev := next(t, w); ev.GetCertname() != "web1.test" || ev.GetNode() != nil {
		t.Errorf("got %v", ev)
	}
}

func TestWatchOfOwnRevocations(t *testing.T) {
	r := newRig(t)
	a, b := r.as(t, provisioner("token:a")), r.as(t, provisioner("token:b"))
	rev, err := r.store.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := b.revocations.WatchRevocations(t.Context(), &espmv1.WatchRevocationsRequest{AfterRevision: rev})
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []*rig{a, r, b} {
		name := map[*rig]string{a: "a.test", r: "r.test", b: "b.test"}[who]
		who.provision(t, name, "")
		end := &espmv1.TerminateNodeRequest{Certname: name, Wait: durationpb.New(30 * time.Second)}
		if _, err := who.nodes.TerminateNode(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	for done := false; !done; {
		ev, err := w.Recv()
		if err != nil || ev.GetRevocation().GetCertname() != "b.test" || ev.GetRevocation().GetOwner() != "token:b" {
			t.Fatalf("b is told %v, %v", ev, err)
		}
		done = ev.GetRevocation().GetState() == revokedState
	}
}

// A token says where a page ended, not whose list it was: another's leads to no more than one's own nodes.
func TestPageTokenOfAnother(t *testing.T) {
	r := newRig(t)
	a, b := r.as(t, provisioner("token:a")), r.as(t, provisioner("token:b"))
	for _, name := range []string{"n1.test", "n3.test", "n5.test"} {
		a.provision(t, name, "")
	}
	for _, name := range []string{"n2.test", "n4.test", "n6.test"} {
		b.provision(t, name, "")
	}
	walk := func(as *rig, token string) (names []string) {
		for first := true; first || token != ""; first = false {
			resp, err := as.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{PageSize: 1, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range resp.GetNodes() {
				names = append(names, n.GetCertname())
			}
			token = resp.GetNextPageToken()
		}
		return names
	}
	resp, err := a.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		got, want []string
	}{
		"a":                   {walk(a, ""), []string{"n1.test", "n3.test", "n5.test"}},
		"b":                   {walk(b, ""), []string{"n2.test", "n4.test", "n6.test"}},
		"b, with a's token":   {walk(b, resp.GetNextPageToken()), []string{"n2.test", "n4.test", "n6.test"}},
		"all, with a's token": {walk(r, resp.GetNextPageToken()), []string{"n2.test", "n3.test", "n4.test", "n5.test", "n6.test"}},
	} {
		if len(test.got) != len(test.want) {
			t.Errorf("%s: got %v, want %v", what, test.got, test.want)
			continue
		}
		for i := range test.got {
			if test.got[i] != test.want[i] {
				t.Errorf("%s: got %v, want %v", what, test.got, test.want)
			}
		}
	}
	for page, token := 0, ""; page == 0 || token != ""; page++ {
		resp, err := b.certs.ListCertificates(t.Context(), &espmv1.ListCertificatesRequest{PageSize: 1, PageToken: token})
		if err != nil || len(resp.GetCertificates()) > 1 {
			t.Fatal(resp, err)
		}
		for _, c := range resp.GetCertificates() {
			if c.GetOwner() != "token:b" {
				t.Errorf("b is told %v", c)
			}
		}
		token = resp.GetNextPageToken()
	}
}

// Whoever sees all can ask for one owner's.
func TestListOfOneOwner(t *testing.T) {
	r := newRig(t)
	a := r.as(t, provisioner("token:a"))
	reader := r.as(t, node.Caller{Name: "token:r", Role: node.Reader})
	a.register(t, &espmv1.Node{Certname: "a.test", Labels: map[string]string{"k": "v"}})
	a.register(t, &espmv1.Node{Certname: "b.test"})
	r.register(t, &espmv1.Node{Certname: "c.test", Labels: map[string]string{"k": "v"}})
	for _, test := range []struct {
		as   *rig
		req  *espmv1.ListNodesRequest
		want int
	}{
		{reader, &espmv1.ListNodesRequest{Owner: "token:a"}, 2},
		{r, &espmv1.ListNodesRequest{Owner: "token:a", Labels: map[string]string{"k": "v"}}, 1},
		{r, &espmv1.ListNodesRequest{Owner: "token"}, 0},
		{r, &espmv1.ListNodesRequest{}, 3},
		{a, &espmv1.ListNodesRequest{}, 2},
		{a, &espmv1.ListNodesRequest{Labels: map[string]string{"k": "v"}}, 1},
		{a, &espmv1.ListNodesRequest{Owner: "token:a"}, 2},
		{a, &espmv1.ListNodesRequest{Owner: "espm"}, 0},
	} {
		resp, err := test.as.nodes.ListNodes(t.Context(), test.req)
		if err != nil || len(resp.GetNodes()) != test.want || resp.GetRevision() == 0 {
			t.Errorf("%v: got %v, %v", test.req, resp, err)
		}
	}
}
