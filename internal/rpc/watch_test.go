package rpc

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type watch = grpc.ServerStreamingClient[espmv1.WatchNodesResponse]

func (r *rig) watch(t *testing.T, after int64) watch {
	t.Helper()
	stream, err := r.nodes.WatchNodes(t.Context(), &espmv1.WatchNodesRequest{AfterRevision: after})
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func next(t *testing.T, w watch) *espmv1.WatchNodesResponse {
	t.Helper()
	ev, err := w.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func TestWatch(t *testing.T) {
	r := newRig(t)
	r.register(t, &espmv1.Node{Certname: "early.test"})
	list, err := r.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{})
	if err != nil || len(list.GetNodes()) != 1 {
		t.Fatalf("got %v, %v", list, err)
	}
	w := r.watch(t, list.GetRevision())
	made := r.register(t, &espmv1.Node{Certname: "a.test"})
	first := next(t, w)
	if first.GetCertname() != "a.test" || first.GetNode().GetUid() != made.GetUid() || first.GetRevision() != made.GetRevision() {
		t.Errorf("got %v, want %v", first, made)
	}
	r.createGroup(t, &espmv1.Group{Name: "not-a-node"})
	_, err = r.nodes.UpdateNode(t.Context(), &espmv1.UpdateNodeRequest{
		Node:       &espmv1.Node{Certname: "a.test", Labels: map[string]string{"k": "v"}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	second := next(t, w)
	if second.GetNode().GetLabels()["k"] != "v" || second.GetRevision() <= first.GetRevision() {
		t.Errorf("got %v after %v", second, first)
	}
	r.terminate(t, "a.test")
	third := next(t, w)
	if third.GetCertname() != "a.test" || third.GetNode() != nil || third.GetRevision() <= second.GetRevision() {
		t.Errorf("got %v after %v", third, second)
	}
	resumed := next(t, r.watch(t, second.GetRevision()))
	if resumed.GetRevision() != third.GetRevision() || resumed.GetNode() != nil {
		t.Errorf("resumed at %v, want %v", resumed, third)
	}
	_, err = r.watch(t, -1).Recv()
	expect(t, err, codes.InvalidArgument, "INVALID")
}

// Whoever watches from a list's revision and falls behind the history is told to list anew.
func TestWatchCompacted(t *testing.T) {
	r := newRigWith(t, bolt.Options{History: 3})
	list, err := r.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		r.register(t, &espmv1.Node{Certname: fmt.Sprintf("n%d.test", i)})
	}
	_, err = r.watch(t, list.GetRevision()).Recv()
	expect(t, err, codes.OutOfRange, "REVISION_COMPACTED")
	list, err = r.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{})
	if err != nil || len(list.GetNodes()) != 6 {
		t.Fatalf("got %v, %v", list, err)
	}
	w := r.watch(t, list.GetRevision())
	r.register(t, &espmv1.Node{Certname: "late.test"})
	if ev := next(t, w); ev.GetCertname() != "late.test" {
		t.Errorf("got %v", ev)
	}
}

// A watch has no end of its own: it must not hold up the server's.
func TestWatchEndsWhenTheServerStops(t *testing.T) {
	r := newRig(t)
	n := r.register(t, &espmv1.Node{Certname: "a.test"})
	w := r.watch(t, n.GetRevision()-1)
	next(t, w)
	r.stop()
	r.grpc.GracefulStop()
	_, err := w.Recv()
	expect(t, err, codes.Unavailable, "UNAVAILABLE")
}

// watchTooMany opens as many watches as a reader may have, and one more.
func watchTooMany(t *testing.T, r *rig) error {
	reader := r.as(t, node.Caller{Name: "token:watcher", Role: node.Reader})
	n := r.register(t, &espmv1.Node{Certname: "watched.test"})
	for range auth.OpenStreams {
		next(t, reader.watch(t, n.GetRevision()-1))
	}
	_, err := reader.watch(t, 0).Recv()
	return err
}

// A watch that has nothing to tell ends soon after the token that opened it.
func TestWatchEndsWithItsToken(t *testing.T) {
	for name, end := range map[string]func(*rig) error{
		"revoked": func(r *rig) error {
			_, err := espmv1.NewTokenServiceClient(r.conn).RevokeToken(t.Context(), &espmv1.RevokeTokenRequest{Name: "watcher"})
			return err
		},
		"expired": func(r *rig) error { r.ahead.Store(int64(auth.DefaultTTL + time.Hour)); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			reader := r.as(t, node.Caller{Name: "token:watcher", Role: node.Reader})
			n := r.register(t, &espmv1.Node{Certname: "a.test"})
			w := reader.watch(t, n.GetRevision()-1)
			next(t, w)
			if err := end(r); err != nil {
				t.Fatal(err)
			}
			_, err := w.Recv()
			expect(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
		})
	}
}
