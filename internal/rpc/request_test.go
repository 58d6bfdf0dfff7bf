package rpc

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func TestRequestIDOfRegister(t *testing.T) {
	r := newRig(t)
	req := &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "a.test", Labels: map[string]string{"k": "v"}}, RequestId: "id"}
	first, err := r.nodes.RegisterNode(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	before := r.held(t)
	again, err := r.nodes.RegisterNode(t.Context(), req)
	if err != nil || !proto.Equal(first, again) {
		t.Errorf("got %v, %v, want %v", again, err, first)
	}
	other := proto.CloneOf(req)
	other.Node.Labels["k"] = "w"
	_, err = r.nodes.RegisterNode(t.Context(), other)
	expect(t, err, codes.InvalidArgument, "REQUEST_ID_REUSED")
	_, err = r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: req.GetNode(), RequestId: "id"})
	expect(t, err, codes.InvalidArgument, "REQUEST_ID_REUSED")
	if r.held(t) != before {
		t.Error("something was changed")
	}
	r.terminate(t, "a.test")
	_, err = r.nodes.RegisterNode(t.Context(), req)
	expect(t, err, codes.FailedPrecondition, "REQUEST_ID_SPENT")
}

func TestRequestIDOfProvision(t *testing.T) {
	r := newRig(t)
	req := &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, RequestId: "id"}
	first, err := r.nodes.ProvisionNode(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.nodes.ProvisionNode(t.Context(), req)
	if err != nil || !proto.Equal(first, again) {
		t.Errorf("the retry got another answer: %v", err)
	}
	csr := &espmv1.ProvisionNodeRequest{
		Node: &espmv1.Node{Certname: "b.test"}, RequestId: "csr", Certificate: &espmv1.CertificateSpec{CsrPem: newCSR(t, "b.test")},
	}
	sent, err := r.nodes.ProvisionNode(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	again, err = r.nodes.ProvisionNode(t.Context(), csr)
	if err != nil || !bytes.Equal(again.GetBundle().GetCertificatePem(), sent.GetBundle().GetCertificatePem()) {
		t.Errorf("the retry got another certificate: %v", err)
	}
	csr.Certificate.CsrPem = newCSR(t, "b.test")
	_, err = r.nodes.ProvisionNode(t.Context(), csr)
	expect(t, err, codes.InvalidArgument, "REQUEST_ID_REUSED")
	if r.issued(t, "a.test") != 1 || r.issued(t, "b.test") != 1 {
		t.Error("a retry had another certificate signed")
	}
}

// Sixteen calls with one request id, of which the first is held up in the
// authority until all are on their way, are one call.
func TestCallsAtOnceAreOne(t *testing.T) {
	r := newRig(t)
	const callers = 16
	signing, release := make(chan struct{}), make(chan struct{})
	r.fail(func(context.Context) error { close(signing); <-release; return nil })
	answers := make([]*espmv1.ProvisionNodeResponse, callers)
	call := func(i int) {
		var err error
		answers[i], err = r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, RequestId: "id"})
		if err != nil {
			t.Error(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { call(0) })
	<-signing
	for i := range callers - 1 {
		wg.Go(func() { call(i + 1) })
	}
	wg.Go(func() {
		_, err := r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{
			Node: &espmv1.Node{Certname: "a.test", Labels: map[string]string{"k": "v"}}, RequestId: "id",
		})
		expect(t, err, codes.InvalidArgument, "REQUEST_ID_REUSED")
	})
	close(release)
	wg.Wait()
	for i, a := range answers {
		if !proto.Equal(a, answers[0]) {
			t.Errorf("caller %d got serial %s, the first %s", i, a.GetNode().GetSerial(), answers[0].GetNode().GetSerial())
		}
	}
	if len(answers[0].GetBundle().GetPrivateKeyPem()) == 0 || r.issued(t, "a.test") != 1 {
		t.Errorf("%d certificates were issued", r.issued(t, "a.test"))
	}
}

// A caller that hangs up does not end what it asked for, and finds it again.
func TestCallerHangsUp(t *testing.T) {
	r := newRig(t)
	ctx, hangUp := context.WithCancel(t.Context())
	release := make(chan struct{})
	r.fail(func(context.Context) error { hangUp(); <-release; return nil })
	req := &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, RequestId: "id"}
	if _, err := r.nodes.ProvisionNode(ctx, req); err == nil {
		t.Error("an answer after hanging up")
	}
	close(release)
	again, err := r.nodes.ProvisionNode(t.Context(), req)
	if err != nil || len(again.GetBundle().GetPrivateKeyPem()) == 0 || r.issued(t, "a.test") != 1 {
		t.Errorf("got %v, with %d certificates issued", err, r.issued(t, "a.test"))
	}
}

func TestValidateOnlyChangesNothing(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	n := r.register(t, &espmv1.Node{Certname: "a.test", Labels: map[string]string{"k": "v"}})
	r.createGroup(t, &espmv1.Group{Name: "g", Description: "old"})
	before := r.held(t)
	spec := &espmv1.CertificateSpec{CsrPem: newCSR(t, "a.test")}
	mask := func(path string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: []string{path}} }
	for name, call := range map[string]func(bool) error{
		"register": func(only bool) error {
			_, err := r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "b.test"}, RequestId: "r", ValidateOnly: only})
			return err
		},
		"provision": func(only bool) error {
			_, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "c.test"}, RequestId: "p", ValidateOnly: only})
			return err
		},
		"update": func(only bool) error {
			_, err := r.nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, UpdateMask: mask("labels"), ValidateOnly: only})
			return err
		},
		"presign": func(only bool) error {
			_, err := r.certs.PresignCertificate(ctx, &espmv1.PresignCertificateRequest{Certname: "a.test", ValidateOnly: only})
			return err
		},
		"sign": func(only bool) error {
			_, err := r.certs.SignCertificateRequest(ctx, &espmv1.SignCertificateRequestRequest{Certname: "a.test", Certificate: spec, ValidateOnly: only})
			return err
		},
		"create group": func(only bool) error {
			_, err := r.groups.CreateGroup(ctx, &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: "h"}, ValidateOnly: only})
			return err
		},
		"update group": func(only bool) error {
			_, err := r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{Group: &espmv1.Group{Name: "g"}, UpdateMask: mask("description"), ValidateOnly: only})
			return err
		},
		"delete group": func(only bool) error {
			_, err := r.groups.DeleteGroup(ctx, &espmv1.DeleteGroupRequest{Name: "g", ValidateOnly: only})
			return err
		},
		"terminate": func(only bool) error {
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "a.test", Uid: n.GetUid(), ValidateOnly: only})
			return err
		},
	} {
		if err := call(true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if r.held(t) != before {
			t.Errorf("%s: something was changed", name)
		}
	}
}

func TestMasksAndRevisions(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	n := r.register(t, &espmv1.Node{Certname: "a.test", Classification: classification()})
	g := r.createGroup(t, &espmv1.Group{Name: "g", Classification: classification()})
	for _, paths := range [][]string{nil, {"uid"}, {"classification.classes.ntp"}, {"labels", "state"}, {"*"}} {
		mask := &fieldmaskpb.FieldMask{Paths: paths}
		_, nodeErr := r.nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, UpdateMask: mask})
		_, groupErr := r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{Group: &espmv1.Group{Name: "g"}, UpdateMask: mask})
		for _, err := range []error{nodeErr, groupErr} {
			if bad := expect(t, err, codes.InvalidArgument, "INVALID"); len(bad) != 1 || bad[0].GetField() != "update_mask" {
				t.Errorf("%q: %v", paths, bad)
			}
		}
	}
	parts := &espmv1.UpdateNodeRequest{
		Node:       &espmv1.Node{Certname: "a.test", Revision: n.GetRevision()},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"classification.classes", "classification.environment"}},
	}
	got, err := r.nodes.UpdateNode(ctx, parts)
	c := got.GetNode().GetClassification()
	if err != nil || len(c.GetClasses()) != 0 || c.GetEnvironment() != "" || len(c.GetParameters()) != 3 {
		t.Errorf("got %v, %v", c, err)
	}
	before := r.held(t)
	_, err = r.nodes.UpdateNode(ctx, parts)
	expect(t, err, codes.Aborted, "REVISION_STALE")
	_, err = r.groups.DeleteGroup(ctx, &espmv1.DeleteGroupRequest{Name: "g", Revision: g.GetRevision() + 1})
	expect(t, err, codes.Aborted, "REVISION_STALE")
	_, err = r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{
		Group: &espmv1.Group{Name: "g", Revision: 1}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"parents"}},
	})
	expect(t, err, codes.Aborted, "REVISION_STALE")
	if r.held(t) != before {
		t.Error("something was changed")
	}
}
