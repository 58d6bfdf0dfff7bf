package rpc

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func classification() *espmv1.Classification {
	return &espmv1.Classification{
		Environment: "production",
		Classes: map[string]*espmv1.ClassParameters{
			"ntp::server": {Parameters: map[string]*structpb.Value{
				"servers": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStringValue("a"), structpb.NewNullValue()}}),
				"limit":   structpb.NewNumberValue(1<<53 - 1),
				"ratio":   structpb.NewNumberValue(0.5),
			}},
			"motd": {},
		},
		Parameters: map[string]*structpb.Value{
			"role": structpb.NewStringValue("web"),
			"on":   structpb.NewBoolValue(true),
			"deep": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewNumberValue(3)}}),
		},
	}
}

const classificationYAML = `---
environment: "production"
classes:
  "motd": {}
  "ntp::server":
    "limit": 9007199254740991
    "ratio": 0.5
    "servers":
      - "a"
      - null
parameters:
  "deep":
    "k": 3
  "on": true
  "role": "web"
`

func TestNodeMethods(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.createGroup(t, &espmv1.Group{Name: "base"})
	want := &espmv1.Node{Certname: "web1.test", Classification: classification(), Groups: []string{"base"}, Labels: map[string]string{"tier": "web"}}
	made := r.register(t, want)
	if made.GetState() != espmv1.NodeState_NODE_STATE_REGISTERED || made.GetUid() == "" || made.GetRevision() == 0 || made.GetCreateTime() == nil {
		t.Errorf("registered: %v", made)
	}
	if !proto.Equal(made.GetClassification(), want.GetClassification()) {
		t.Errorf("got %v, want %v", made.GetClassification(), want.GetClassification())
	}
	got, err := r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: "web1.test", Uid: made.GetUid()})
	if err != nil || !proto.Equal(got.GetNode(), made) {
		t.Errorf("got %v, %v, want %v", got.GetNode(), err, made)
	}
	yaml, err := r.classifier.ClassifyNode(ctx, &espmv1.ClassifyNodeRequest{Certname: "web1.test"})
	if err != nil || yaml.GetYaml() != classificationYAML {
		t.Errorf("classified as %v\n%s", err, yaml.GetYaml())
	}
	updated, err := r.nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{
		Node:       &espmv1.Node{Certname: "web1.test", Labels: map[string]string{"tier": "db"}, Revision: made.GetRevision()},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels", "groups"}},
	})
	if err != nil || updated.GetNode().GetLabels()["tier"] != "db" || len(updated.GetNode().GetGroups()) != 0 || updated.GetNode().GetRevision() <= made.GetRevision() {
		t.Errorf("updated: %v, %v", updated.GetNode(), err)
	}
	if !proto.Equal(updated.GetNode().GetClassification(), want.GetClassification()) {
		t.Errorf("the update changed what its mask does not name: %v", updated.GetNode())
	}
	gone := r.terminate(t, "web1.test")
	if gone.GetNode().GetState() != espmv1.NodeState_NODE_STATE_TERMINATED || len(gone.GetRevocations()) != 0 || gone.GetNode().GetTerminateTime() == nil {
		t.Errorf("terminated: %v", gone)
	}
	got, err = r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: "web1.test", Uid: made.GetUid()})
	if err != nil || got.GetNode().GetState() != espmv1.NodeState_NODE_STATE_TERMINATED {
		t.Errorf("the tombstone: %v, %v", got, err)
	}
}

func TestProvisionAndTerminate(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	p, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{
		Node: &espmv1.Node{Certname: "web1.test"},
		Certificate: &espmv1.CertificateSpec{
			Ttl: durationpb.New(48 * time.Hour), DnsAltNames: []string{"alias.test"}, Extensions: map[string]string{"pp_role": "web"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(p.GetBundle().GetCertificatePem(), p.GetBundle().GetPrivateKeyPem()); err != nil {
		t.Error("key and certificate: ", err)
	}
	cert := parseCertificate(t, p.GetBundle().GetCertificatePem())
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.GetBundle().GetCaPem())
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "alias.test", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if until := time.Until(cert.NotAfter); until < 47*time.Hour || until > 49*time.Hour {
		t.Errorf("valid for %v", until)
	}
	if !strings.Contains(p.GetBundle().GetPuppetConf(), "certname = web1.test\nserver = puppet.test\n") {
		t.Errorf("puppet.conf:\n%s", p.GetBundle().GetPuppetConf())
	}
	shown, err := r.certs.GetCertificate(ctx, &espmv1.GetCertificateRequest{Serial: "0x" + strings.ToLower(p.GetNode().GetSerial())})
	if err != nil || shown.GetCertificate().GetState() != espmv1.CertificateState_CERTIFICATE_STATE_VALID || shown.GetCertificate().GetExtensions()["pp_role"] != "web" {
		t.Errorf("certificate: %v, %v", shown, err)
	}
	gone, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{
		Certname: "web1.test", Uid: p.GetNode().GetUid(), Reason: "superseded", Wait: durationpb.New(30 * time.Second)})
	if err != nil || len(gone.GetRevocations()) != 1 || gone.GetRevocations()[0].GetState() != revokedState || gone.GetRevocations()[0].GetReason() != "superseded" {
		t.Fatalf("terminated: %v, %v", gone, err)
	}
	shown, err = r.certs.GetCertificate(ctx, &espmv1.GetCertificateRequest{Serial: p.GetNode().GetSerial()})
	if err != nil || shown.GetCertificate().GetState() != espmv1.CertificateState_CERTIFICATE_STATE_REVOKED || shown.GetCertificate().GetRevocation().GetCrlNumber() == "" {
		t.Errorf("certificate: %v, %v", shown, err)
	}
	again, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "web1.test", Uid: p.GetNode().GetUid(), Reason: "unspecified"})
	if err != nil || !proto.Equal(again.GetRevocations()[0], gone.GetRevocations()[0]) {
		t.Errorf("terminated again: %v, %v", again, err)
	}
}

func TestCertificateMethods(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.register(t, &espmv1.Node{Certname: "made.test"})
	sent := r.register(t, &espmv1.Node{Certname: "sent.test"})
	made, err := r.certs.PresignCertificate(ctx, &espmv1.PresignCertificateRequest{Certname: "made.test"})
	if err != nil || len(made.GetBundle().GetPrivateKeyPem()) == 0 {
		t.Fatalf("presigned: %v", err)
	}
	signed, err := r.certs.SignCertificateRequest(ctx, &espmv1.SignCertificateRequestRequest{
		Certname: "sent.test", Uid: sent.GetUid(), Certificate: &espmv1.CertificateSpec{CsrPem: newCSR(t, "sent.test")},
	})
	if err != nil || len(signed.GetBundle().GetPrivateKeyPem()) != 0 {
		t.Fatalf("signed: %v", err)
	}
	all, err := r.certs.ListCertificates(ctx, &espmv1.ListCertificatesRequest{})
	if err != nil || len(all.GetCertificates()) != 2 || all.GetNextPageToken() != "" {
		t.Errorf("all: %v, %v", all, err)
	}
	one, err := r.certs.ListCertificates(ctx, &espmv1.ListCertificatesRequest{Certname: "sent.test"})
	if err != nil || len(one.GetCertificates()) != 1 || len(one.GetCertificates()[0].GetCertificatePem()) != 0 {
		t.Errorf("one: %v, %v", one, err)
	}
	trust, err := r.certs.GetTrustBundle(ctx, &espmv1.GetTrustBundleRequest{})
	if err != nil || !slices.Equal(trust.GetCaPem(), made.GetBundle().GetCaPem()) || len(trust.GetCrlPem()) == 0 {
		t.Errorf("trust: %v, %v", trust, err)
	}
}

func TestGroupMethods(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	made := r.createGroup(t, &espmv1.Group{Name: "base", Description: "for all", Classification: classification()})
	r.createGroup(t, &espmv1.Group{Name: "web", Parents: []string{"base"}})
	got, err := r.groups.GetGroup(ctx, &espmv1.GetGroupRequest{Name: "base"})
	if err != nil || !proto.Equal(got.GetGroup(), made) {
		t.Errorf("got %v, %v, want %v", got, err, made)
	}
	list, err := r.groups.ListGroups(ctx, &espmv1.ListGroupsRequest{})
	if err != nil || len(list.GetGroups()) != 2 || list.GetGroups()[1].GetParents()[0] != "base" {
		t.Errorf("list: %v, %v", list, err)
	}
	updated, err := r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{
		Group:      &espmv1.Group{Name: "web", Revision: list.GetGroups()[1].GetRevision()},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"parents"}},
	})
	if err != nil || len(updated.GetGroup().GetParents()) != 0 {
		t.Errorf("updated: %v, %v", updated, err)
	}
	if _, err := r.groups.DeleteGroup(ctx, &espmv1.DeleteGroupRequest{Name: "base", Revision: made.GetRevision()}); err != nil {
		t.Error(err)
	}
}

func TestHealthAndReflection(t *testing.T) {
	r := newRig(t)
	services := []string{"espm.v1.CertificateService", "espm.v1.ClassifierService", "espm.v1.GroupService", "espm.v1.NodeService"}
	for _, name := range append(services, "") {
		resp, err := healthv1.NewHealthClient(r.conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
		if err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", name, resp, err)
		}
	}
	stream, err := reflectionv1.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, want := range services {
		if !slices.Contains(names, want) {
			t.Errorf("reflection lists %q, not %s", names, want)
		}
	}
}
