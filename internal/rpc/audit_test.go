package rpc

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/clock"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// fresh returns the lines that came after one, oldest first.
func (r *rig) fresh(t *testing.T, after *int64) (lines []*espmv1.AuditLine) {
	t.Helper()
	stream, err := r.auditing.ExportAuditLines(t.Context(), &espmv1.ExportAuditLinesRequest{AfterSeq: *after})
	for err == nil {
		var resp *espmv1.ExportAuditLinesResponse
		if resp, err = stream.Recv(); err == nil {
			lines = append(lines, resp.GetLines()...)
			*after = lines[len(lines)-1].GetSeq()
		}
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	return lines
}

// step is one call that changes something, and the actions of its lines, in order.
type step struct {
	method string
	call   func() error
	want   []node.Action
}

// Every method that changes something leaves lines that say so, in order. Nothing
// is revoked meanwhile, so that only the call's own are there.
func TestEachCallLeavesItsLines(t *testing.T) {
	r := newRig(t)
	tokens := espmv1.NewTokenServiceClient(r.conn)
	ctx := t.Context()
	r.authority.down.Store(true)
	var revocation string
	group := &espmv1.Group{Name: "web"}
	steps := []step{
		{espmv1.NodeService_RegisterNode_FullMethodName, func() error {
			_, err := r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, RequestId: "r1"})
			return err
		}, []node.Action{node.ActionRegister}},
		{espmv1.NodeService_RegisterNode_FullMethodName, func() error { // again: nothing is changed
			_, err := r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, RequestId: "r1"})
			return err
		}, nil},
		{espmv1.NodeService_UpdateNode_FullMethodName, func() error {
			_, err := r.nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{Node: &espmv1.Node{Certname: "a.test", Labels: map[string]string{"x": "secret"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}})
			return err
		}, []node.Action{node.ActionUpdate}},
		{espmv1.CertificateService_PresignCertificate_FullMethodName, func() error {
			_, err := r.certs.PresignCertificate(ctx, &espmv1.PresignCertificateRequest{Certname: "a.test"})
			return err
		}, []node.Action{node.ActionBegin, node.ActionIssue}},
		{espmv1.RevocationService_RevokeCertificate_FullMethodName, func() error {
			resp, err := r.revocations.RevokeCertificate(ctx, &espmv1.RevokeCertificateRequest{Certname: "a.test", Comment: "ticket 4711"})
			revocation = resp.GetRevocation().GetId()
			return err
		}, []node.Action{node.ActionOrder}},
		{espmv1.RevocationService_RetryRevocation_FullMethodName, func() error {
			_, err := r.revocations.RetryRevocation(ctx, &espmv1.RetryRevocationRequest{Id: revocation})
			return err
		}, []node.Action{node.ActionRetry}},
		{espmv1.RevocationService_DropRevocation_FullMethodName, func() error {
			_, err := r.revocations.DropRevocation(ctx, &espmv1.DropRevocationRequest{Id: revocation, Comment: "found again"})
			return err
		}, []node.Action{node.ActionDrop}},
		{espmv1.NodeService_TerminateNode_FullMethodName, func() error {
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "a.test"})
			return err
		}, []node.Action{node.ActionTerminate}},
		{espmv1.NodeService_TerminateNode_FullMethodName, func() error { // again
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "a.test"})
			return err
		}, nil},
		{espmv1.NodeService_ProvisionNode_FullMethodName, func() error {
			_, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "b.test"}})
			return err
		}, []node.Action{node.ActionProvision, node.ActionIssue}},
		{espmv1.NodeService_ProvisionNode_FullMethodName, func() error {
			_, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "c.test"}, ValidateOnly: true})
			return err
		}, nil},
		{espmv1.CertificateService_SignCertificateRequest_FullMethodName, func() error {
			r.register(t, &espmv1.Node{Certname: "d.test"})
			_, err := r.certs.SignCertificateRequest(ctx, &espmv1.SignCertificateRequestRequest{Certname: "d.test", Certificate: &espmv1.CertificateSpec{CsrPem: newCSR(t, "d.test")}})
			return err
		}, []node.Action{node.ActionRegister, node.ActionBegin, node.ActionIssue}},
		{espmv1.CertificateService_ImportCertificates_FullMethodName, func() error {
			r.foreign(t, "f.test")
			stream, err := r.certs.ImportCertificates(ctx, &espmv1.ImportCertificatesRequest{})
			for err == nil {
				_, err = stream.Recv()
			}
			if err == io.EOF {
				return nil
			}
			return err
		}, []node.Action{node.ActionImport}},
		{espmv1.NodeService_ForgetNode_FullMethodName, func() error {
			_, err := r.nodes.ForgetNode(ctx, &espmv1.ForgetNodeRequest{Certname: "f.test", ValidateOnly: true})
			return err
		}, nil},
		{espmv1.NodeService_ForgetNode_FullMethodName, func() error {
			_, err := r.nodes.ForgetNode(ctx, &espmv1.ForgetNodeRequest{Certname: "f.test"})
			return err
		}, []node.Action{node.ActionGiveUp}},
		{espmv1.GroupService_CreateGroup_FullMethodName, func() error {
			_, err := r.groups.CreateGroup(ctx, &espmv1.CreateGroupRequest{Group: group})
			return err
		}, []node.Action{node.ActionGroupCreate}},
		{espmv1.GroupService_UpdateGroup_FullMethodName, func() error {
			_, err := r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{Group: group, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description"}}})
			return err
		}, []node.Action{node.ActionGroupUpdate}},
		{espmv1.GroupService_DeleteGroup_FullMethodName, func() error {
			_, err := r.groups.DeleteGroup(ctx, &espmv1.DeleteGroupRequest{Name: "web"})
			return err
		}, []node.Action{node.ActionGroupDelete}},
		{espmv1.BackupService_CreateBackup_FullMethodName, func() error {
			stream, err := espmv1.NewBackupServiceClient(r.conn).CreateBackup(ctx, &espmv1.CreateBackupRequest{})
			for err == nil {
				_, err = stream.Recv()
			}
			if err == io.EOF {
				return nil
			}
			return err
		}, []node.Action{node.ActionBackup}},
		{espmv1.ClockService_AcceptClock_FullMethodName, func() error {
			if err := r.clock.Check(); err != nil {
				return err
			}
			r.hostAhead.Store(int64(2 * clock.MaxAhead))
			_, err := espmv1.NewClockServiceClient(r.conn).AcceptClock(ctx, &espmv1.AcceptClockRequest{})
			return err
		}, []node.Action{node.ActionClockAccept}},
		{espmv1.TokenService_CreateToken_FullMethodName, func() error {
			_, err := tokens.CreateToken(ctx, &espmv1.CreateTokenRequest{Name: "web", Role: espmv1.Role_ROLE_READER})
			return err
		}, []node.Action{node.ActionTokenCreate}},
		{espmv1.TokenService_RotateToken_FullMethodName, func() error {
			_, err := tokens.RotateToken(ctx, &espmv1.RotateTokenRequest{Name: "web"})
			return err
		}, []node.Action{node.ActionTokenRotate}},
		{espmv1.TokenService_RevokeToken_FullMethodName, func() error {
			_, err := tokens.RevokeToken(ctx, &espmv1.RevokeTokenRequest{Name: "web"})
			return err
		}, []node.Action{node.ActionTokenRevoke}},
	}
	var last int64
	done := map[string]bool{}
	for _, s := range steps {
		done[s.method] = true
		if err := s.call(); err != nil {
			t.Errorf("%s: %v", s.method, err)
		}
		var got []node.Action
		for _, l := range r.fresh(t, &last) {
			got = append(got, node.Action(l.GetAction()))
			if l.GetOutcome() != "ok" || l.GetPrincipal() == "" || l.GetRevision() == 0 || l.GetCertname() == "" && !strings.HasSuffix(l.GetObject(), "/web") && l.GetObject() != "backup" && l.GetObject() != "clock" || strings.Contains(l.String(), "secret") {
				t.Errorf("%s: %v", s.method, l)
			}
		}
		if !slices.Equal(got, s.want) {
			t.Errorf("%s leaves %q, want %q", s.method, got, s.want)
		}
	}
	for _, method := range auth.Methods() {
		if auth.ActionOf(method) != node.ActionRead && !done["/"+method] {
			t.Errorf("%s changes something, and is not tried here", method)
		}
	}
}

// What is refused has a line, without a text that may be anything.
func TestRefusedCallsHaveLines(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.register(t, &espmv1.Node{Certname: "a.test"})
	tokens := espmv1.NewTokenServiceClient(r.conn)
	const key = "-----BEGIN PRIVATE KEY-----"
	var last int64
	r.fresh(t, &last)
	for _, tt := range []struct {
		call                        func() error
		action                      node.Action
		outcome, certname, uid, req string
		object                      string
	}{ // ten at most: more of one caller in a minute are summed up
		{func() error {
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "puppet.test", Uid: someUID})
			return err
		}, node.ActionTerminate, "CERTNAME_PROTECTED", "puppet.test", someUID, "", ""},
		{func() error {
			_, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, RequestId: "r-1"})
			return err
		}, node.ActionProvision, "NODE_EXISTS", "a.test", "", "r-1", ""},
		{func() error {
			_, err := r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: key, Uid: key}, RequestId: key})
			return err
		}, node.ActionRegister, "INVALID", "", "", "", ""},
		{func() error { // a key in the field of a uid, which a parser of UUIDs takes
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "a.test", Uid: "000102030405060708090a0b0c0d0e0f"})
			return err
		}, node.ActionTerminate, "INVALID", "a.test", "", "", ""},
		{func() error {
			_, err := r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "b.test", Uid: strings.ToUpper(someUID)}, RequestId: strings.Repeat("r", 129)})
			return err
		}, node.ActionRegister, "INVALID", "b.test", "", "", ""},
		{func() error {
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "a.test", Wait: durationpb.New(-1)})
			return err
		}, node.ActionTerminate, "INVALID", "a.test", "", "", ""},
		{func() error {
			stream, err := r.certs.ImportCertificates(ctx, &espmv1.ImportCertificatesRequest{Groups: []string{"none"}})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}, node.ActionImport, "GROUP_NOT_FOUND", "", "", "", ""},
		{func() error {
			_, err := r.groups.DeleteGroup(ctx, &espmv1.DeleteGroupRequest{Name: "ci"})
			return err
		}, node.ActionGroupDelete, "GROUP_NOT_FOUND", "", "", "", "group/ci"},
		{func() error {
			_, err := tokens.CreateToken(ctx, &espmv1.CreateTokenRequest{Name: key, Role: espmv1.Role_ROLE_READER})
			return err
		}, node.ActionTokenCreate, "INVALID", "", "", "", ""},
		{func() error {
			_, err := tokens.RevokeToken(ctx, &espmv1.RevokeTokenRequest{Name: "ci.1_a"})
			return err
		}, node.ActionTokenRevoke, "TOKEN_NOT_FOUND", "", "", "", "token/ci.1_a"},
	} {
		if err := tt.call(); err == nil {
			t.Errorf("%s is not refused", tt.action)
		}
		lines := r.fresh(t, &last)
		if len(lines) != 1 {
			t.Errorf("%s: %v", tt.action, lines)
			continue
		}
		l := lines[0]
		if l.GetAction() != string(tt.action) || l.GetOutcome() != tt.outcome || l.GetCertname() != tt.certname || l.GetUid() != tt.uid || l.GetRequestId() != tt.req || l.GetObject() != tt.object || l.GetRevision() != 0 {
			t.Errorf("%v, want %s %s of %q %q, request %q, object %q", l, tt.action, tt.outcome, tt.certname, tt.uid, tt.req, tt.object)
		}
		if strings.Contains(l.String(), "PRIVATE") || l.GetMethod() == "" {
			t.Errorf("%v", l)
		}
	}
	if _, err := r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: "none.test"}); err == nil {
		t.Error("found")
	}
	if lines := r.fresh(t, &last); len(lines) != 0 {
		t.Errorf("a read that found nothing: %v", lines)
	}
}

// A read has a line where it was not allowed; so has a stream that was, before its request was read.
func TestDeniedReads(t *testing.T) {
	r := newRig(t)
	e := &edge{log: discard(), gate: r.gate}
	who := node.Caller{Name: "certname:web1.test", Role: node.Provisioner, Peer: "192.0.2.7:1"}
	for _, err := range []error{
		e.answer(&call{who, "espm.v1.NodeService/GetNode", &espmv1.GetNodeRequest{Certname: "b.test"}}, node.ErrNotPermitted),
		e.answer(&call{who, "espm.v1.NodeService/WatchNodes", nil}, node.ErrUnauthenticated),
		e.answer(&call{who, "grpc.health.v1.Health/Check", nil}, status.Error(codes.NotFound, "no")),
	} {
		if codeOf(err) == codes.OK {
			t.Error("an error was lost")
		}
	}
	var last int64
	lines := r.fresh(t, &last)
	if len(lines) != 2 {
		t.Fatal(lines)
	}
	if l := lines[0]; l.GetPrincipal() != who.Name || l.GetRole() != "provisioner" || l.GetPeer() != who.Peer || l.GetAction() != "read" ||
		l.GetOutcome() != "PERMISSION_DENIED" || l.GetCertname() != "b.test" || l.GetMethod() != "espm.v1.NodeService/GetNode" {
		t.Error(l)
	}
	if lines[1].GetOutcome() != "UNAUTHENTICATED" {
		t.Error(lines[1])
	}
}

func wantViolation(t *testing.T, err error, field string) {
	t.Helper()
	bad := expect(t, err, codes.InvalidArgument, "INVALID")
	if len(bad) != 1 || bad[0].GetField() != field {
		t.Errorf("got %v, want %s", bad, field)
	}
}

func TestAuditMethods(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for _, name := range []string{"a.test", "b.test", "c.test"} {
		r.register(t, &espmv1.Node{Certname: name})
	}
	var names []string
	since := timestamppb.New(time.Now().Add(-time.Hour))
	for token := ""; ; {
		resp, err := r.auditing.ListAuditLines(ctx, &espmv1.ListAuditLinesRequest{PageSize: 2, PageToken: token, Action: "node.register", SinceTime: since})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range resp.GetLines() {
			names = append(names, l.GetCertname())
		}
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"c.test", "b.test", "a.test"}) {
		t.Error(names)
	}
	v, err := r.auditing.VerifyAudit(ctx, &espmv1.VerifyAuditRequest{})
	if err != nil || !v.GetOk() || v.GetLines() != 3 || v.GetFirstSeq() != 1 || v.GetHeadSeq() != 3 || v.GetBytes() == 0 {
		t.Fatalf("%v, %v", v, err)
	}
	v, err = r.auditing.VerifyAudit(ctx, &espmv1.VerifyAuditRequest{ExpectSeq: 4, ExpectHash: v.GetHeadHash()})
	if err != nil || v.GetOk() || v.GetBadSeq() != 4 || !strings.Contains(v.GetProblem(), "cut off") {
		t.Errorf("%v, %v", v, err)
	}
	_, err = r.auditing.VerifyAudit(ctx, &espmv1.VerifyAuditRequest{ExpectSeq: 1, ExpectHash: "abc"})
	wantViolation(t, err, "expect_hash")
	for field, req := range map[string]*espmv1.ListAuditLinesRequest{
		"certname":   {Certname: "UPPER"},
		"uid":        {Uid: "x"},
		"since_time": {SinceTime: &timestamppb.Timestamp{Nanos: -1}},
		"until_time": {UntilTime: &timestamppb.Timestamp{Nanos: -1}},
		"page_size":  {PageSize: -1},
		"page_token": {PageToken: "x"},
	} {
		_, err := r.auditing.ListAuditLines(ctx, req)
		wantViolation(t, err, field)
	}
	stream, err := r.auditing.ExportAuditLines(ctx, &espmv1.ExportAuditLinesRequest{AfterSeq: -1})
	if err == nil {
		_, err = stream.Recv()
	}
	wantViolation(t, err, "after_seq")
}

// An older chain is not vouched for.
func TestVerifyOlderThanKept(t *testing.T) {
	r := newRig(t)
	r.audit.MaxBytes = 1
	for _, name := range []string{"a.test", "b.test", "c.test"} {
		r.register(t, &espmv1.Node{Certname: name})
	}
	if err := r.audit.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.audit.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := r.auditing.VerifyAudit(t.Context(), &espmv1.VerifyAuditRequest{ExpectSeq: 1, ExpectHash: audit.Genesis})
	wantViolation(t, err, "expect_seq")
}
