package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// estate is what one provisioner has: a node with a certificate, and one
// whose certificate is revoked.
type estate struct {
	name, uid, serial string
	bare, spentSerial string
	revocation        string
}

// absent is an estate of which nothing is there.
var absent = estate{
	name: "absent.test", uid: someUID, serial: "ABCDEF01", bare: "gone.test", spentSerial: "ABCDEF02",
	revocation: "0198c0de-0000-7000-8000-000000000001",
}

func (e estate) words() []string {
	return []string{e.name, e.uid, e.serial, e.bare, e.spentSerial, e.revocation}
}

func (r *rig) estate(t *testing.T, n int) estate {
	t.Helper()
	live, spent := r.provision(t, fmt.Sprintf("live%d.test", n), "").GetNode(), r.provision(t, fmt.Sprintf("bare%d.test", n), "").GetNode()
	resp, err := r.revocations.RevokeCertificate(t.Context(), &espmv1.RevokeCertificateRequest{Certname: spent.GetCertname(), Wait: durationpb.New(30 * time.Second)})
	if err != nil || resp.GetRevocation().GetState() != revokedState {
		t.Fatalf("got %v, %v", resp, err)
	}
	return estate{
		name: live.GetCertname(), uid: live.GetUid(), serial: live.GetSerial(),
		bare: spent.GetCertname(), spentSerial: spent.GetSerial(), revocation: resp.GetRevocation().GetId(),
	}
}

func answer[T proto.Message](m T, err error) (proto.Message, error) { return m, err }

// access is what four callers get when one asks for what the first owns: the
// reason of a refusal, "" where there is none.
type access struct {
	method               string
	call                 func(context.Context, *testing.T, *rig, estate) (proto.Message, error)
	owner, other, reader string
	admin                string
	tells                string // what another provisioner learns nevertheless
}

const (
	ok     = ""
	denied = "PERMISSION_DENIED"
	noNode = "NODE_NOT_FOUND"
	noCert = "CERTIFICATE_NOT_FOUND"
	noRev  = "REVOCATION_NOT_FOUND"
)

func update(path string, n *espmv1.Node) *espmv1.UpdateNodeRequest {
	return &espmv1.UpdateNodeRequest{Node: n, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}}}
}

var accesses = []access{
	{"NodeService/RegisterNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: e.name}}))
	}, "NODE_EXISTS", "NODE_EXISTS", denied, "NODE_EXISTS", "that the name is taken"},
	{"NodeService/ProvisionNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: e.name}}))
	}, "NODE_EXISTS", "NODE_EXISTS", denied, "NODE_EXISTS", "that the name is taken"},
	{"NodeService/GetNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: e.name}))
	}, ok, noNode, ok, ok, ""},
	{"NodeService/GetNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: e.name, Uid: e.uid}))
	}, ok, noNode, ok, ok, ""},
	{"NodeService/ListNodes", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		return answer(r.nodes.ListNodes(ctx, &espmv1.ListNodesRequest{PageSize: 1000}))
	}, ok, ok, ok, ok, ""},
	{"NodeService/ListNodes", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		return answer(r.nodes.ListNodes(ctx, &espmv1.ListNodesRequest{PageSize: 1000, Owner: "token:a"}))
	}, ok, ok, ok, ok, ""},
	{"NodeService/UpdateNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.nodes.UpdateNode(ctx, update("labels", &espmv1.Node{Certname: e.name})))
	}, ok, noNode, denied, ok, ""},
	{"NodeService/UpdateNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.nodes.UpdateNode(ctx, update("owner", &espmv1.Node{Certname: e.name, Owner: "token:b"})))
	}, denied, noNode, denied, ok, ""},
	{"NodeService/TerminateNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: e.name}))
	}, ok, noNode, denied, ok, ""},
	{"NodeService/TerminateNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: e.name, Uid: e.uid}))
	}, ok, noNode, denied, ok, ""},
	{"CertificateService/PresignCertificate", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.certs.PresignCertificate(ctx, &espmv1.PresignCertificateRequest{Certname: e.bare}))
	}, ok, noNode, denied, ok, ""},
	{"CertificateService/SignCertificateRequest", func(ctx context.Context, t *testing.T, r *rig, e estate) (proto.Message, error) {
		spec := &espmv1.CertificateSpec{CsrPem: newCSR(t, e.bare)}
		return answer(r.certs.SignCertificateRequest(ctx, &espmv1.SignCertificateRequestRequest{Certname: e.bare, Certificate: spec}))
	}, ok, noNode, denied, ok, ""},
	{"CertificateService/GetCertificate", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.certs.GetCertificate(ctx, &espmv1.GetCertificateRequest{Serial: e.spentSerial}))
	}, ok, noCert, ok, ok, ""},
	{"CertificateService/ListCertificates", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		return answer(r.certs.ListCertificates(ctx, &espmv1.ListCertificatesRequest{PageSize: 1000}))
	}, ok, ok, ok, ok, ""},
	{"CertificateService/ListCertificates", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.certs.ListCertificates(ctx, &espmv1.ListCertificatesRequest{Certname: e.name}))
	}, ok, ok, ok, ok, ""},
	{"CertificateService/ImportCertificates", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		stream, err := r.certs.ImportCertificates(ctx, &espmv1.ImportCertificatesRequest{Certnames: []string{e.name}})
		if err != nil {
			return nil, err
		}
		return answer(stream.Recv())
	}, denied, denied, denied, ok, ""},
	{"CertificateService/GetTrustBundle", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		_, err := r.certs.GetTrustBundle(ctx, &espmv1.GetTrustBundleRequest{})
		return nil, err
	}, ok, ok, ok, ok, ""},
	{"RevocationService/RevokeCertificate", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.revocations.RevokeCertificate(ctx, &espmv1.RevokeCertificateRequest{Certname: e.name}))
	}, ok, noNode, denied, ok, ""},
	{"RevocationService/RevokeCertificate", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.revocations.RevokeCertificate(ctx, &espmv1.RevokeCertificateRequest{Serial: e.serial}))
	}, ok, noCert, denied, ok, ""},
	{"RevocationService/RevokeCertificate", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.revocations.RevokeCertificate(ctx, &espmv1.RevokeCertificateRequest{Serial: e.serial, Certname: e.name}))
	}, ok, noCert, denied, ok, ""},
	{"RevocationService/RevokeCertificate", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.revocations.RevokeCertificate(ctx, &espmv1.RevokeCertificateRequest{Certname: e.name, Force: true}))
	}, denied, denied, denied, ok, ""},
	{"RevocationService/GetRevocation", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.revocations.GetRevocation(ctx, &espmv1.GetRevocationRequest{Id: e.revocation}))
	}, ok, noRev, ok, ok, ""},
	{"RevocationService/ListRevocations", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		return answer(r.revocations.ListRevocations(ctx, &espmv1.ListRevocationsRequest{PageSize: 1000}))
	}, ok, ok, ok, ok, ""},
	{"RevocationService/ListRevocations", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.revocations.ListRevocations(ctx, &espmv1.ListRevocationsRequest{Certname: e.bare}))
	}, ok, ok, ok, ok, ""},
	{"RevocationService/RetryRevocation", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.revocations.RetryRevocation(ctx, &espmv1.RetryRevocationRequest{Id: e.revocation}))
	}, denied, denied, denied, "REVOCATION_CLOSED", ""},
	{"RevocationService/DropRevocation", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		return answer(r.revocations.DropRevocation(ctx, &espmv1.DropRevocationRequest{Id: e.revocation, Comment: "why"}))
	}, denied, denied, denied, "REVOCATION_CLOSED", ""},
	{"AuthorityService/GetAuthorityStatus", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		_, err := espmv1.NewAuthorityServiceClient(r.conn).GetAuthorityStatus(ctx, &espmv1.GetAuthorityStatusRequest{})
		return nil, err
	}, denied, denied, ok, ok, ""},
	{"GroupService/CreateGroup", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		_, err := r.groups.CreateGroup(ctx, &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: "new"}, ValidateOnly: true})
		return nil, err
	}, denied, denied, denied, ok, ""},
	{"GroupService/GetGroup", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		_, err := r.groups.GetGroup(ctx, &espmv1.GetGroupRequest{Name: "base"})
		return nil, err
	}, ok, ok, ok, ok, ""},
	{"GroupService/ListGroups", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		_, err := r.groups.ListGroups(ctx, &espmv1.ListGroupsRequest{})
		return nil, err
	}, ok, ok, ok, ok, ""},
	{"GroupService/UpdateGroup", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		mask := &fieldmaskpb.FieldMask{Paths: []string{"description"}}
		_, err := r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{Group: &espmv1.Group{Name: "base"}, UpdateMask: mask})
		return nil, err
	}, denied, denied, denied, ok, ""},
	{"GroupService/DeleteGroup", func(ctx context.Context, _ *testing.T, r *rig, _ estate) (proto.Message, error) {
		_, err := r.groups.DeleteGroup(ctx, &espmv1.DeleteGroupRequest{Name: "base", ValidateOnly: true})
		return nil, err
	}, denied, denied, denied, ok, ""},
	{"ClassifierService/ClassifyNode", func(ctx context.Context, _ *testing.T, r *rig, e estate) (proto.Message, error) {
		_, err := r.classifier.ClassifyNode(ctx, &espmv1.ClassifyNodeRequest{Certname: e.name})
		return nil, err
	}, ok, noNode, ok, ok, ""},
}

// watched have tests of their own, as what they don't tell takes a while to show.
var watched = []string{"NodeService/WatchNodes", "RevocationService/WatchRevocations"}

func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// Every method, asked for what one provisioner owns, by him, by another, by a reader and by an admin.
func TestOwnership(t *testing.T) {
	r := newRig(t)
	r.createGroup(t, &espmv1.Group{Name: "base"})
	owner, other := r.as(t, provisioner("token:a")), r.as(t, provisioner("token:b"))
	reader, admin := r.as(t, node.Caller{Name: "token:r", Role: node.Reader}), r.as(t, node.Caller{Name: "local:root", Role: node.Admin})
	mine := other.estate(t, 999) // so that it is no empty list that is looked at
	known := slices.Clone(watched)
	for i, a := range accesses {
		known = append(known, a.method)
		t.Run(fmt.Sprintf("%d %s", i, a.method), func(t *testing.T) {
			e := owner.estate(t, i)
			refused := func(who string, as *rig, want string) proto.Message {
				m, err := a.call(t.Context(), t, as, e)
				if got := reasonOf(err); got != want {
					t.Errorf("%s gets %q (%v), want %q", who, got, err, want)
				}
				return m
			}
			toOther := refused("another provisioner", other, a.other)
			if text := protojson.Format(toOther); toOther != nil && slices.ContainsFunc(e.words(), func(w string) bool { return strings.Contains(text, w) }) {
				t.Errorf("another provisioner is told %s", text)
			}
			if a.other != ok && a.tells == "" {
				sameAsAbsent(t, a, other, e)
			}
			refused("a reader", reader, a.reader)
			if m := refused("the owner", owner, a.owner); a.owner == ok && m != nil {
				text := protojson.Format(m)
				if slices.ContainsFunc(mine.words(), func(w string) bool { return strings.Contains(text, w) }) {
					t.Errorf("the owner is told of another's: %s", text)
				}
				if _, bundle := m.(interface{ GetBundle() *espmv1.Bundle }); !bundle && !slices.ContainsFunc(e.words(), func(w string) bool { return strings.Contains(text, w) }) {
					t.Errorf("the owner is told nothing of his own: %s", text)
				}
			}
			if a.admin == ok && a.owner == ok {
				e = owner.estate(t, 1000+i) // the owner has changed the other
			}
			refused("an admin", admin, a.admin)
		})
	}
	for name, info := range r.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			method, ours := strings.CutPrefix(name+"/"+m.Name, "espm.v1.")
			if ours && auth.Permits("espm.v1."+method, node.Caller{Role: node.Provisioner}) && !slices.Contains(known, method) {
				t.Errorf("%s is not in the table: say who gets what", method)
			}
		}
	}
}

// sameAsAbsent checks that a refusal says nothing that it would not say if there was nothing.
func sameAsAbsent(t *testing.T, a access, other *rig, e estate) {
	t.Helper()
	_, there := a.call(t.Context(), t, other, e)
	_, gone := a.call(t.Context(), t, other, absent)
	blank := func(err error, e estate) string {
		text := status.Convert(err).Proto().String()
		for _, w := range e.words() {
			text = strings.ReplaceAll(text, w, "X")
		}
		return text
	}
	if got, want := blank(there, e), blank(gone, absent); got != want {
		t.Errorf("what is another's is refused with\n%s\nwhat is not there with\n%s", got, want)
	}
}
