package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// foreign has the CA sign certificates that espm knows nothing of.
func (r *rig) foreign(t *testing.T, names ...string) {
	t.Helper()
	key, err := ca.GenerateKey(ca.ECP256)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		_, err := r.authority.Sign(t.Context(), ca.Request{Certname: node.Certname(name), Serial: r.authority.NewSerial(), Key: key})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// imports returns what came until the stream ended, and the error it ended with.
func (r *rig) imports(ctx context.Context, req *espmv1.ImportCertificatesRequest) (all []*espmv1.ImportedCertificate, err error) {
	stream, err := r.certs.ImportCertificates(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, resp.GetCertificates()...)
	}
}

func TestImportCertificates(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.createGroup(t, &espmv1.Group{Name: "old"})
	r.foreign(t, "a.test", "puppet.test")
	req := &espmv1.ImportCertificatesRequest{Groups: []string{"old"}, Labels: map[string]string{"from": "puppet"}, ValidateOnly: true}
	before := r.held(t)
	got, err := r.imports(ctx, req)
	if err != nil || len(got) != 2 || got[0].GetOutcome() != espmv1.ImportOutcome_IMPORT_OUTCOME_WOULD_IMPORT || got[0].GetUid() != "" {
		t.Errorf("a dry run: %v, %v", got, err)
	}
	if after := r.held(t); after != before {
		t.Error("a dry run changed something")
	}
	req.ValidateOnly = false
	got, err = r.imports(ctx, req)
	if err != nil || len(got) != 2 || got[0].GetOutcome() != espmv1.ImportOutcome_IMPORT_OUTCOME_IMPORTED || got[0].GetNotAfterTime() == nil {
		t.Fatalf("imported: %v, %v", got, err)
	}
	if spared := got[1]; spared.GetCertname() != "puppet.test" || spared.GetOutcome() != espmv1.ImportOutcome_IMPORT_OUTCOME_SKIPPED || spared.GetReason() == "" || spared.GetSerial() != "" {
		t.Errorf("protected: %v", spared)
	}
	shown, err := r.certs.GetCertificate(ctx, &espmv1.GetCertificateRequest{Serial: got[0].GetSerial()})
	if err != nil || shown.GetCertificate().GetImportTime() == nil || shown.GetCertificate().GetUid() != got[0].GetUid() {
		t.Errorf("certificate: %v, %v", shown, err)
	}
	n, err := r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: "a.test"})
	if err != nil || n.GetNode().GetState() != espmv1.NodeState_NODE_STATE_PROVISIONED || !slices.Equal(n.GetNode().GetGroups(), req.GetGroups()) {
		t.Errorf("node: %v, %v", n, err)
	}
	got, err = r.imports(ctx, &espmv1.ImportCertificatesRequest{Certnames: []string{"none.test", "a.test"}})
	if err != nil || len(got) != 2 || got[0].GetOutcome() != espmv1.ImportOutcome_IMPORT_OUTCOME_ALREADY_IMPORTED || got[1].GetOutcome() != espmv1.ImportOutcome_IMPORT_OUTCOME_NOT_FOUND {
		t.Errorf("by name: %v, %v", got, err)
	}
}

func TestImportCertificatesRefuses(t *testing.T) {
	r := newRig(t)
	r.foreign(t, "a.test")
	before := r.held(t)
	_, err := r.imports(t.Context(), &espmv1.ImportCertificatesRequest{Certnames: []string{"a.test", "A.test"}, Labels: map[string]string{" ": ""}})
	if fields := expect(t, err, codes.InvalidArgument, "INVALID"); len(fields) != 2 || fields[0].GetField() != "certnames[1]" {
		t.Errorf("violations: %v", fields)
	}
	_, err = r.imports(t.Context(), &espmv1.ImportCertificatesRequest{Groups: []string{"none"}})
	expect(t, err, codes.NotFound, "GROUP_NOT_FOUND")
	if after := r.held(t); after != before {
		t.Error("what was refused changed something")
	}
}

// An import ends, soon and in order, when its caller goes or the daemon stops, and is gone on with.
func TestImportCertificatesEnds(t *testing.T) {
	r := newRig(t)
	var names []string
	for i := range 401 {
		names = append(names, fmt.Sprintf("n%03d.test", i))
	}
	r.foreign(t, names...)

	looked, goOn := make(chan struct{}, 3), make(chan struct{})
	hold := func() { looked <- struct{}{}; <-goOn }
	r.authority.onHeld.Store(&hold)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { _, err := r.imports(ctx, &espmv1.ImportCertificatesRequest{}); gone <- err }()
	<-looked
	cancel()
	if err := <-gone; status.Code(err) != codes.Canceled {
		t.Errorf("the caller went: %v", err)
	}
	goOn <- struct{}{}

	go func() { _, err := r.imports(t.Context(), &espmv1.ImportCertificatesRequest{}); gone <- err }()
	<-looked
	r.stop()
	close(goOn)
	expect(t, <-gone, codes.Unavailable, "UNAVAILABLE")
	r.authority.onHeld.Store(nil)

	if got, err := r.store.Nodes(t.Context(), store.NodeFilter{}, "", 1000); err != nil || len(got.Items) >= len(names) {
		t.Errorf("%d nodes although it was cut short twice, %v", len(got.Items), err)
	}
}
