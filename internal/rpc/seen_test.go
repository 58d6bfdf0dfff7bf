package rpc

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// lookUp asks for a node's catalog, as the ENC does.
func (r *rig) lookUp(t *testing.T, name node.Certname) {
	t.Helper()
	n, err := r.store.Node(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	r.sightings.Saw(t.Context(), n)
}

func (r *rig) get(t *testing.T, name, uid string) *espmv1.Node {
	t.Helper()
	resp, err := r.nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: name, Uid: uid})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetNode()
}

func TestLastSeenTime(t *testing.T) {
	r := newRig(t)
	n := r.register(t, named("web1.test"))
	if _, err := r.classifier.ClassifyNode(t.Context(), &espmv1.ClassifyNodeRequest{Certname: "web1.test"}); err != nil {
		t.Fatal(err)
	}
	if got := r.get(t, "web1.test", "").GetLastSeenTime(); got != nil {
		t.Errorf("asking what a node is counted as its look-up, at %v", got.AsTime())
	}
	before := time.Now()
	r.lookUp(t, "web1.test")
	got := r.get(t, "web1.test", n.GetUid())
	if at := got.GetLastSeenTime().AsTime(); at.Before(before) || time.Since(at) < 0 || got.GetRevision() != n.GetRevision() {
		t.Errorf("got %v", got)
	}
	page, err := r.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{})
	if err != nil || !page.GetNodes()[0].GetLastSeenTime().AsTime().Equal(got.GetLastSeenTime().AsTime()) {
		t.Errorf("got %v, %v", page, err)
	}
}

func TestListNotSeen(t *testing.T) {
	r := newRig(t)
	labels := map[string]string{"tier": "front"}
	for _, name := range []string{"a.test", "b.test", "c.test"} {
		r.register(t, &espmv1.Node{Certname: name, Labels: labels})
	}
	r.register(t, named("d.test"))
	r.lookUp(t, "b.test")
	req := &espmv1.ListNodesRequest{PageSize: 1, Labels: labels, NotSeenFor: durationpb.New(time.Hour)}
	first, err := r.nodes.ListNodes(t.Context(), req)
	if err != nil || len(first.GetNodes()) > 0 || first.GetNextPageToken() == "" {
		t.Fatalf("an empty page, with more to come: got %v, %v", first, err)
	}
	_, err = r.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{
		PageSize: 1, Labels: labels, NotSeenFor: durationpb.New(2 * time.Hour), PageToken: first.GetNextPageToken()})
	if bad := expect(t, err, codes.InvalidArgument, "INVALID"); len(bad) != 1 || bad[0].GetField() != "page_token" {
		t.Errorf("a token of another filter: %v", bad)
	}
	if got := r.walk(t, req, func(int) {}); len(got) != 0 {
		t.Errorf("not seen for an hour: %v", got)
	}
	req = &espmv1.ListNodesRequest{PageSize: 1, Labels: labels, NotSeenFor: durationpb.New(time.Nanosecond)}
	if got := r.walk(t, req, func(int) {}); len(got) != 3 {
		t.Errorf("not seen for a moment: %v", got)
	}
}

func TestClaimDeadlineTime(t *testing.T) {
	r := newRig(t)
	req := &espmv1.ProvisionNodeRequest{Node: named("web1.test"), ClaimWithin: durationpb.New(time.Hour)}
	resp, err := r.nodes.ProvisionNode(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	n := resp.GetNode()
	if left := time.Until(n.GetClaimDeadlineTime().AsTime()); left < 59*time.Minute || left > 61*time.Minute || n.GetClaimTime() != nil {
		t.Errorf("got %v", n)
	}
	r.lookUp(t, "web1.test")
	if got := r.get(t, "web1.test", ""); got.GetClaimTime() == nil || got.GetRevision() == n.GetRevision() || !got.GetClaimDeadlineTime().AsTime().Equal(n.GetClaimDeadlineTime().AsTime()) {
		t.Errorf("claimed: got %v", got)
	}
	if n := r.provision(t, "web2.test", "").GetNode(); n.GetClaimDeadlineTime() != nil || n.GetTerminateReason() != "" {
		t.Errorf("without a deadline: got %v", n)
	}
}
