package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/need"
	"github.com/espm-project/espm/test/testbed"
)

// fill fills the disk.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "ballast"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		_, err := f.Write(block)
		if errors.Is(err, syscall.ENOSPC) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func makeRoom(t *testing.T, dir string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
}

func withText(name, text string) *espmv1.Node {
	return &espmv1.Node{Certname: name, Classification: &espmv1.Classification{
		Parameters: map[string]*structpb.Value{"text": structpb.NewStringValue(text)}}}
}

const classifiedYAML = "---\nclasses: {}\nparameters:\n  \"text\": \"hello\"\n"

func TestDiskFull(t *testing.T) {
	dir := need.Disk(t, "8m")
	s := newServer(t, dir, filepath.Join(dir, "ca"), filepath.Join(dir, "crl.pem"))
	h := &holders{}
	for i := range 3 {
		h.add(s.provision(t, fmt.Sprintf("kept%d.test", i)))
	}
	doomed := s.provision(t, "doomed.test")
	if _, err := s.nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: withText("classified.test", "hello")}); err != nil {
		t.Fatal(err)
	}

	fill(t, dir)
	_, err := s.nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: withText("large.test", strings.Repeat("x", 900_000))})
	noSpace(t, "register", err)
	s.provisionAll(t, dir, h, "full", true)
	terminated := s.tryTerminate(t, doomed)
	s.classified(t, "classified.test", classifiedYAML)
	s.serving(t)

	// The daemon also starts with the full disk, as a restart is an operator's first try.
	s.end(t, syscall.SIGKILL)
	s.classified(t, "classified.test", classifiedYAML)
	s.start(t)
	s.classified(t, "classified.test", classifiedYAML)
	if _, err := s.nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: "doomed.test"}); terminated == (err == nil) {
		t.Errorf("terminated %v, and found: %v", terminated, err)
	}
	s.provisionAll(t, dir, h, "again", false)

	makeRoom(t, dir)
	s.revoked(t, "doomed.test", doomed.GetNode().GetUid())
	h.add(s.provision(t, "full0.test")) // the names are free again
	h.add(s.provision(t, "large.test"))
	s.settled(t, h)
	s.end(t, syscall.SIGTERM)
	s.start(t)
	h.add(s.provision(t, "after.test"))
	s.settled(t, h)
	s.classified(t, "classified.test", classifiedYAML)
	s.end(t, syscall.SIGTERM)
	if strings.Contains(s.log(t), "panic") {
		t.Error("something panicked")
	}
}

// provisionAll provisions a few nodes on a full disk. Those that succeed count.
func (s *server) provisionAll(t *testing.T, dir string, h *holders, prefix string, mustFail bool) {
	t.Helper()
	refused := 0
	for i := range 5 {
		fill(t, dir) // the room that a failed try freed
		resp, err := s.tryProvision(t.Context(), fmt.Sprintf("%s%d.test", prefix, i))
		if err == nil {
			h.add(resp)
			continue
		}
		refused++
		noSpace(t, "provision", err)
	}
	if mustFail && refused == 0 {
		t.Error("the disk is not full")
	}
}

// tryTerminate terminates on a full disk and reports whether it was acknowledged.
func (s *server) tryTerminate(t *testing.T, p *espmv1.ProvisionNodeResponse) bool {
	t.Helper()
	_, err := s.nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: p.GetNode().GetCertname(), Uid: p.GetNode().GetUid()})
	if err != nil {
		noSpace(t, "terminate", err)
	}
	return err == nil
}

// If only the CA's disk is full, a terminate is accepted, and its revocation waits.
func TestDiskOfTheCAFull(t *testing.T) {
	dir := need.Disk(t, "1m")
	store := testbed.Dir(t)
	s := newServer(t, store, filepath.Join(dir, "ca"), filepath.Join(store, "crl.pem"))
	h := &holders{}
	h.add(s.provision(t, "kept.test"))
	doomed := s.provision(t, "doomed.test")

	fill(t, dir)
	s.pending(t, doomed)
	s.provisionAll(t, dir, h, "full", true)
	eventually(t, "the name is free", func(ctx context.Context) error {
		_, err := s.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: withText("full0.test", "hello")})
		return err
	})
	s.classified(t, "full0.test", classifiedYAML)
	s.end(t, syscall.SIGTERM)
	s.start(t)
	s.pending(t, doomed)

	makeRoom(t, dir)
	s.revoked(t, "doomed.test", doomed.GetNode().GetUid())
	h.add(s.provision(t, "full1.test"))
	s.settled(t, h)
	s.end(t, syscall.SIGTERM)
}

func TestPublishedFolderMissing(t *testing.T) {
	dir := testbed.Dir(t)
	missing := filepath.Join(dir, "missing")
	s := newServer(t, dir, filepath.Join(dir, "ca"), filepath.Join(missing, "crl.pem"))
	if log := s.log(t); !strings.Contains(log, missing) || !strings.Contains(log, "level=warning") {
		t.Errorf("no warning that names the folder:\n%s", log)
	}
	h := &holders{}
	h.add(s.provision(t, "kept.test"))
	doomed := s.provision(t, "doomed.test")
	s.pending(t, doomed)
	if !strings.Contains(s.log(t), "revocations can't be carried out yet") {
		t.Error("the log does not say that revocations wait")
	}
	if err := os.Mkdir(missing, 0o755); err != nil {
		t.Fatal(err)
	}
	s.revoked(t, "doomed.test", doomed.GetNode().GetUid())
	s.settled(t, h)
	s.end(t, syscall.SIGTERM)
}

// pending terminates a node whose revocation can't be done now.
func (s *server) pending(t *testing.T, p *espmv1.ProvisionNodeResponse) {
	t.Helper()
	resp, err := s.nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{
		Certname: p.GetNode().GetCertname(), Uid: p.GetNode().GetUid(), Wait: durationpb.New(500_000_000),
	})
	if err != nil || len(resp.GetRevocations()) != 1 || resp.GetRevocations()[0].GetState() != espmv1.RevocationState_REVOCATION_STATE_PENDING {
		t.Errorf("got %v, %v, want one pending revocation", resp.GetRevocations(), err)
	}
}
