package rpc

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const revokedState = espmv1.RevocationState_REVOCATION_STATE_REVOKED

// What a watch shows of one revocation: that it was ordered, and that it was done.
func TestWatchRevocations(t *testing.T) {
	r := newRig(t)
	r.provision(t, "a.test", "")
	r.provision(t, "b.test", "")
	list, err := r.revocations.ListRevocations(t.Context(), &espmv1.ListRevocationsRequest{})
	if err != nil || len(list.GetRevocations()) != 0 || list.GetAuthorityFailure() != nil {
		t.Fatalf("got %v, %v", list, err)
	}
	r.terminate(t, "b.test")
	resp, err := r.revocations.RevokeCertificate(t.Context(), &espmv1.RevokeCertificateRequest{
		Certname: "a.test", Reason: "cessationOfOperation", Comment: "gone", Wait: durationpb.New(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	want := resp.GetRevocation()
	if want.GetState() != revokedState || want.GetCrlNumber() == "" || len(want.GetPublishedTo()) != 1 {
		t.Errorf("got %v", want)
	}
	w, err := r.revocations.WatchRevocations(t.Context(), &espmv1.WatchRevocationsRequest{AfterRevision: list.GetRevision(), Certname: "a.test"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		ev, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got := ev.GetRevocation()
		if got.GetId() != want.GetId() || got.GetReason() != "cessationOfOperation" || got.GetComment() != "gone" {
			t.Fatalf("got %v", got)
		}
		if got.GetState() == revokedState && got.GetRevision() == ev.GetRevision() {
			break
		}
	}
}

func TestListRevocations(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		name := fmt.Sprintf("n%d.test", i)
		r.provision(t, name, "")
		r.terminate(t, name)
	}
	count := func(req *espmv1.ListRevocationsRequest) (n int) {
		t.Helper()
		for req.PageSize = 2; ; {
			resp, err := r.revocations.ListRevocations(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			n += len(resp.GetRevocations())
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
				return n
			}
		}
	}
	if n := count(&espmv1.ListRevocationsRequest{}); n != 5 {
		t.Errorf("%d in all", n)
	}
	if n := count(&espmv1.ListRevocationsRequest{Certname: "n3.test"}); n != 1 {
		t.Errorf("%d of one name", n)
	}
	if n := count(&espmv1.ListRevocationsRequest{Failed: true}); n != 0 {
		t.Errorf("%d failed", n)
	}
}

func TestBadRevocationRequests(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		req   *espmv1.RevokeCertificateRequest
		field string
	}{
		{&espmv1.RevokeCertificateRequest{}, "certname"},
		{&espmv1.RevokeCertificateRequest{Certname: "Bad"}, "certname"},
		{&espmv1.RevokeCertificateRequest{Serial: "xyz"}, "serial"},
		{&espmv1.RevokeCertificateRequest{Certname: "a.test", Reason: "removeFromCRL"}, "reason"},
		{&espmv1.RevokeCertificateRequest{Certname: "a.test", Comment: "two\nlines"}, "comment"},
		{&espmv1.RevokeCertificateRequest{Certname: "a.test", Comment: strings.Repeat("x", 1025)}, "comment"},
		{&espmv1.RevokeCertificateRequest{Certname: "a.test", Wait: durationpb.New(-1)}, "wait"},
	} {
		_, err := r.revocations.RevokeCertificate(t.Context(), c.req)
		expectField(t, err, c.field)
	}
	_, err := r.revocations.GetRevocation(t.Context(), &espmv1.GetRevocationRequest{Id: "1"})
	expectField(t, err, "id")
	_, err = r.revocations.DropRevocation(t.Context(), &espmv1.DropRevocationRequest{Id: "0198c0de-0000-7000-8000-000000000000"})
	expectField(t, err, "comment")
	w, err := r.revocations.WatchRevocations(t.Context(), &espmv1.WatchRevocationsRequest{AfterRevision: -1})
	if err == nil {
		_, err = w.Recv()
	}
	expectField(t, err, "after_revision")
}

func expectField(t *testing.T, err error, field string) {
	t.Helper()
	expect(t, err, codes.InvalidArgument, "INVALID")
	if !strings.Contains(fmt.Sprint(err), field+": ") {
		t.Errorf("%v does not name %s", err, field)
	}
}
