package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const someUID = "0198c0de-0000-7000-8000-000000000000"

// provoke has for each reason of the table a call that is answered with it.
var provoke = map[string]func(*testing.T, *rig) error{
	"INVALID": func(t *testing.T, r *rig) error {
		_, err := r.nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: "UPPER.test"})
		return err
	},
	"NODE_NOT_FOUND": func(t *testing.T, r *rig) error {
		_, err := r.nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: "none.test"})
		return err
	},
	"NODE_EXISTS": func(t *testing.T, r *rig) error {
		r.register(t, &espmv1.Node{Certname: "a.test"})
		_, err := r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}})
		return err
	},
	"UID_MISMATCH": func(t *testing.T, r *rig) error {
		r.register(t, &espmv1.Node{Certname: "a.test"})
		_, err := r.nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: "a.test", Uid: someUID})
		return err
	},
	"CERTNAME_PROTECTED": func(t *testing.T, r *rig) error {
		_, err := r.nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: "puppet.test"})
		return err
	},
	"GROUP_NOT_FOUND": func(t *testing.T, r *rig) error {
		_, err := r.groups.GetGroup(t.Context(), &espmv1.GetGroupRequest{Name: "none"})
		return err
	},
	"GROUP_EXISTS": func(t *testing.T, r *rig) error {
		r.createGroup(t, &espmv1.Group{Name: "web"})
		_, err := r.groups.CreateGroup(t.Context(), &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: "web"}})
		return err
	},
	"GROUP_IN_USE": func(t *testing.T, r *rig) error {
		r.createGroup(t, &espmv1.Group{Name: "web"})
		r.register(t, &espmv1.Node{Certname: "a.test", Groups: []string{"web"}})
		_, err := r.groups.DeleteGroup(t.Context(), &espmv1.DeleteGroupRequest{Name: "web"})
		return err
	},
	"CLASSIFICATION_CONFLICT": func(t *testing.T, r *rig) error {
		r.createGroup(t, &espmv1.Group{Name: "one", Classification: &espmv1.Classification{Environment: "one"}})
		r.createGroup(t, &espmv1.Group{Name: "two", Classification: &espmv1.Classification{Environment: "two"}})
		_, err := r.nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "a.test", Groups: []string{"one", "two"}}})
		return err
	},
	"REVISION_STALE": func(t *testing.T, r *rig) error {
		n := r.register(t, &espmv1.Node{Certname: "a.test"})
		mask := &fieldmaskpb.FieldMask{Paths: []string{"labels"}}
		req := &espmv1.UpdateNodeRequest{Node: &espmv1.Node{Certname: "a.test", Revision: n.GetRevision()}, UpdateMask: mask}
		if _, err := r.nodes.UpdateNode(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		_, err := r.nodes.UpdateNode(t.Context(), req)
		return err
	},
	"REQUEST_ID_REUSED": func(t *testing.T, r *rig) error {
		r.provision(t, "a.test", "id")
		_, err := r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "b.test"}, RequestId: "id"})
		return err
	},
	"REQUEST_ID_SPENT": func(t *testing.T, r *rig) error {
		r.provision(t, "a.test", "id")
		r.terminate(t, "a.test")
		_, err := r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, RequestId: "id"})
		return err
	},
	"CERTIFICATE_EXISTS": func(t *testing.T, r *rig) error {
		r.provision(t, "a.test", "")
		_, err := r.certs.PresignCertificate(t.Context(), &espmv1.PresignCertificateRequest{Certname: "a.test"})
		return err
	},
	"CERTIFICATE_FOREIGN": func(t *testing.T, r *rig) error {
		key, err := ca.GenerateKey(ca.ECP256)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.authority.Sign(t.Context(), ca.Request{Certname: "a.test", Serial: r.authority.NewSerial(), Key: key}); err != nil {
			t.Fatal(err)
		}
		_, err = r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}})
		return err
	},
	"CERTIFICATE_NOT_FOUND": func(t *testing.T, r *rig) error {
		_, err := r.certs.GetCertificate(t.Context(), &espmv1.GetCertificateRequest{Serial: "2a"})
		return err
	},
	"REVOCATION_NOT_FOUND": func(t *testing.T, r *rig) error {
		_, err := r.revocations.GetRevocation(t.Context(), &espmv1.GetRevocationRequest{Id: "0198c0de-0000-7000-8000-000000000000"})
		return err
	},
	"REVOCATION_CLOSED": func(t *testing.T, r *rig) error {
		r.provision(t, "a.test", "")
		resp, err := r.revocations.RevokeCertificate(t.Context(), &espmv1.RevokeCertificateRequest{Certname: "a.test", Wait: durationpb.New(time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.revocations.RetryRevocation(t.Context(), &espmv1.RetryRevocationRequest{Id: resp.GetRevocation().GetId()})
		return err
	},
	"ISSUE_IN_PROGRESS": func(t *testing.T, r *rig) error {
		r.register(t, &espmv1.Node{Certname: "a.test"})
		signing, release, done := make(chan struct{}), make(chan struct{}), make(chan error)
		r.fail(func(context.Context) error { close(signing); <-release; return nil })
		go func() {
			_, err := r.certs.PresignCertificate(t.Context(), &espmv1.PresignCertificateRequest{Certname: "a.test"})
			done <- err
		}()
		<-signing
		_, err := r.certs.PresignCertificate(t.Context(), &espmv1.PresignCertificateRequest{Certname: "a.test"})
		close(release)
		if err := <-done; err != nil {
			t.Error("the one in progress: ", err)
		}
		return err
	},
	"REVISION_COMPACTED": func(t *testing.T, r *rig) error {
		for i := range 8 {
			r.register(t, &espmv1.Node{Certname: fmt.Sprintf("n%d.test", i)})
		}
		stream, err := r.nodes.WatchNodes(t.Context(), &espmv1.WatchNodesRequest{AfterRevision: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return err
	},
	"REQUEST_FOREIGN": signError(node.ErrForeignRequest),
	"CA_REFUSED":      signError(node.ErrRefused),
	"UNAVAILABLE":     signError(node.ErrUnavailable),

	"UNAUTHENTICATED":          callWithWrongToken,
	"PERMISSION_DENIED":        registerAsReader,
	"RATE_LIMITED":             callTooFast,
	"TOO_MANY_OPEN_PROVISIONS": provisionTooMany,
	"TOO_MANY_OPEN_STREAMS":    watchTooMany,
	"TOKEN_NOT_FOUND": func(t *testing.T, r *rig) error {
		_, err := espmv1.NewTokenServiceClient(r.conn).RevokeToken(t.Context(), &espmv1.RevokeTokenRequest{Name: "none"})
		return err
	},
	"TOKEN_EXISTS": func(t *testing.T, r *rig) error {
		r.token(t, "ci", espmv1.Role_ROLE_READER, nil)
		_, err := espmv1.NewTokenServiceClient(r.conn).CreateToken(t.Context(), &espmv1.CreateTokenRequest{Name: "ci", Role: espmv1.Role_ROLE_READER})
		return err
	},
	"DEADLINE_EXCEEDED": signError(context.DeadlineExceeded),
	"CANCELED":          signError(context.Canceled),
}

func signError(cause error) func(*testing.T, *rig) error {
	return func(t *testing.T, r *rig) error {
		r.fail(func(context.Context) error { return fmt.Errorf("signing: %w", cause) })
		_, err := r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}})
		r.fail(nil)
		if _, again := r.nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "a.test"}}); again != nil {
			t.Error("the name is not free: ", again)
		}
		return err
	}
}

func TestEveryRowOfTheTable(t *testing.T) {
	for _, row := range node.ErrorReasons {
		t.Run(row.Reason, func(t *testing.T) {
			call, ok := provoke[row.Reason]
			if !ok {
				t.Fatal("no call is answered with this reason: is the row needed?")
			}
			expect(t, call(t, newRigWith(t, bolt.Options{History: 5})), statusCodes[row.Reason], row.Reason)
		})
	}
	if len(provoke) != len(node.ErrorReasons) || len(statusCodes) != len(node.ErrorReasons)+1 {
		t.Errorf("%d reasons are provoked and %d have a code, the table has %d, and there is INTERNAL", len(provoke), len(statusCodes), len(node.ErrorReasons))
	}
}

// A busy name says when to come back, in the form that clients of other languages read.
func TestBusyHasARetryDelay(t *testing.T) {
	r := newRig(t)
	delay := func(cause error) (found []time.Duration) {
		t.Helper()
		err := signError(cause)(t, r)
		expect(t, err, codes.Unavailable, "UNAVAILABLE")
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok {
				found = append(found, info.GetRetryDelay().AsDuration())
			}
		}
		r.terminate(t, "a.test")
		return found
	}
	if got := delay(&node.BusyError{Reason: "pending", RetryAfter: 5 * time.Second}); !slices.Equal(got, []time.Duration{5 * time.Second}) {
		t.Errorf("retry after %v, want 5s, once", got)
	}
	if got := delay(node.ErrUnavailable); got != nil {
		t.Errorf("retry after %v, where nobody knows when", got)
	}
}

func TestInternal(t *testing.T) {
	r := newRig(t)
	expect(t, signError(errBroken)(t, r), codes.Internal, "INTERNAL")
}

func TestWrappedErrorsMap(t *testing.T) {
	for _, row := range node.ErrorReasons {
		err := row.Err
		if errors.Is(err, node.ErrInvalid) {
			err = node.Invalid("certname", "must be lower case")
		}
		for _, wrapped := range []error{err, fmt.Errorf("one: %w", fmt.Errorf("two: %w", err)), errors.Join(errors.New("other"), err)} {
			bad := expect(t, toStatus(wrapped), statusCodes[row.Reason], row.Reason)
			if row.Reason == "INVALID" && (len(bad) != 1 || bad[0].GetField() != "certname" || bad[0].GetDescription() != "must be lower case") {
				t.Errorf("%v: got %v", wrapped, bad)
			}
		}
	}
	already := status.Error(codes.DataLoss, "from elsewhere")
	if got := toStatus(already); got != already {
		t.Errorf("got %v, want %v", got, already)
	}
}

// A status travels as headers, and clients take 8 KiB of them.
func TestErrorsStayShort(t *testing.T) {
	var many []error
	for i := range 5000 {
		many = append(many, node.Invalid(fmt.Sprintf("labels[%s%d]", strings.Repeat("ä", 300), i), "%s", strings.Repeat("€", 5000)))
	}
	for _, err := range []error{node.Join(many...), fmt.Errorf("%w: %s", node.ErrNodeNotFound, strings.Repeat("x", 1<<20)), errors.New(strings.Repeat("ü", 1<<20))} {
		s := status.Convert(toStatus(err))
		size := len(s.Message()) + len(s.Proto().String())*4/3
		if size > 8<<10 {
			t.Errorf("%s: %d bytes", s.Code(), size)
		}
		if !strings.HasSuffix(s.Message(), "...") {
			t.Errorf("cut without a sign: %q", s.Message())
		}
	}
	bad := badRequest([]node.Violation{{Field: "a", Rule: strings.Repeat("r", 400)}, {Field: "b", Rule: "short"}})
	if len(bad.GetFieldViolations()) != 2 || bad.GetFieldViolations()[1].GetField() != "b" {
		t.Errorf("cut without need: %v", bad)
	}
}

func TestPanicFailsThatCallAlone(t *testing.T) {
	r := newRig(t)
	const secret = "hunter2"
	boom := func() error { panic(secret) }
	r.authority.onTrust.Store(&boom)
	_, err := r.certs.GetTrustBundle(t.Context(), &espmv1.GetTrustBundleRequest{})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "goroutine") {
		t.Errorf("got %v, want INTERNAL without what panicked", err)
	}
	r.authority.onTrust.Store(nil)
	if _, err := r.certs.GetTrustBundle(t.Context(), &espmv1.GetTrustBundleRequest{}); err != nil {
		t.Error("the call after the panic: ", err)
	}
	r.conn.Close()
	r.grpc.Stop()
	if log := r.log.Bytes(); !bytes.Contains(log, []byte("a call panicked")) || bytes.Contains(log, []byte(secret)) {
		t.Errorf("log: %s", log)
	}
}

// The flight of a provision runs in a goroutine of its own.
func TestPanicInFlight(t *testing.T) {
	for _, id := range []string{"", "id"} {
		r := newRig(t)
		r.fail(func(context.Context) error { panic("hunter2") })
		req := &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "a.test"}, RequestId: id}
		_, err := r.nodes.ProvisionNode(t.Context(), req)
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "goroutine") {
			t.Errorf("got %.200v, want INTERNAL without what panicked and where", err)
		}
		r.fail(nil)
		r.provision(t, "other.test", "")
		if id != "" { // the retry settles what the panic left open
			r.provision(t, "a.test", id)
			if n := r.issued(t, "a.test"); n != 1 {
				t.Errorf("%d certificates were issued", n)
			}
		}
	}
}

// quietStream is a stream of nothing.
type quietStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s quietStream) Context() context.Context { return s.ctx }

func TestPanicInStream(t *testing.T) {
	r := newRig(t)
	called := false
	method := "espm.v1.NodeService/WatchNodes"
	sent, _ := metadata.FromOutgoingContext(r.token(t, "r", espmv1.Role_ROLE_READER, nil))
	admitted, err := r.gate.Admit(auth.Request{Peer: r.gate.NetworkPeer("192.0.2.1:5", nil), Method: method, Authorization: sent.Get("authorization")})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithValue(t.Context(), admissionKey{}, admission{Admission: admitted})
	e := &edge{log: discard(), gate: r.gate, serving: t.Context()}
	err = e.stream(nil, quietStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/" + method}, func(any, grpc.ServerStream) error {
		called = true
		panic("hunter2")
	})
	if !called || status.Code(err) != codes.Internal || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}
