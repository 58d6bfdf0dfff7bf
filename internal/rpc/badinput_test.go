package rpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// bad is input that must be refused, naming the field and the rule. Nodes are
// registered and provisioned, each with the same answer.
type bad struct {
	name  string
	node  *espmv1.Node
	spec  *espmv1.CertificateSpec // where given, it is what is wrong
	field string
	rule  string
}

func named(certname string) *espmv1.Node { return &espmv1.Node{Certname: certname} }

func classed(class string, params map[string]*structpb.Value) *espmv1.Node {
	return &espmv1.Node{Certname: "free.test", Classification: &espmv1.Classification{
		Classes: map[string]*espmv1.ClassParameters{class: {Parameters: params}}}}
}

func valued(v *structpb.Value) *espmv1.Node {
	return &espmv1.Node{Certname: "free.test", Classification: &espmv1.Classification{Parameters: map[string]*structpb.Value{"p": v}}}
}

func labelled(k, v string) *espmv1.Node {
	return &espmv1.Node{Certname: "free.test", Labels: map[string]string{k: v}}
}

// foreignCSR has another key than the one that signed it.
func foreignCSR(t *testing.T, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(newCSR(t, name))
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var parts struct {
		Info      asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(block.Bytes, &parts); err != nil {
		t.Fatal(err)
	}
	forged, err := ecdsa.SignASN1(rand.Reader, other, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	parts.Signature = asn1.BitString{Bytes: forged, BitLength: 8 * len(forged)}
	der, err := asn1.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificateRequest(der); err != nil {
		t.Fatal("it must be wrong in its signature alone: ", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func badNodes() []bad {
	huge := strings.Repeat("x", 10<<20)
	return []bad{
		{"no certname", named(""), nil, "certname", "must not be empty"},
		{"path", named("../x"), nil, "certname", "labels"},
		{"absolute path", named("/etc/passwd"), nil, "certname", "labels"},
		{"upper case", named("Web1.test"), nil, "certname", "lower case"},
		{"wildcard", named("*.test"), nil, "certname", "wildcards"},
		{"the CA's own", named("ca"), nil, "certname", "CA"},
		{"control character", named("a\nb.test"), nil, "certname", "labels hold"},
		{"300 characters", named(strings.Repeat("a", 300)), nil, "certname", "at most 64 bytes, is 300"},
		{"10 MB certname", named(huge), nil, "certname", "at most 64 bytes"},
		{"300-character label", labelled("k", strings.Repeat("v", 300)), nil, "labels[k]", "at most 128 bytes"},
		{"300-character key", labelled(strings.Repeat("k", 300), "v"), nil, "labels[", "at most 63 bytes"},
		{"class in upper case", classed("Ntp", nil), nil, `classes["Ntp"]`, "class name in lower case"},
		{"class syntax", classed("ntp:server", nil), nil, `classes["ntp:server"]`, "class name in lower case"},
		{"10 MB class", classed(huge, nil), nil, "classes[", "class name in lower case"},
		{"class parameter", classed("ntp", map[string]*structpb.Value{"No": structpb.NewBoolValue(true)}), nil, `classes[ntp]."No"`, "must match"},
		{"no value", classed("ntp", map[string]*structpb.Value{"p": {}}), nil, "classes[ntp].p", "has no value"},
		{"no value inside", valued(structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{{}}})), nil, "parameters[p][0]", "has no value"},
		{"NaN", valued(structpb.NewNumberValue(math.NaN())), nil, "parameters[p]", "finite"},
		{"infinity", valued(structpb.NewNumberValue(math.Inf(-1))), nil, "parameters[p]", "finite"},
		{"2^53", valued(structpb.NewNumberValue(1 << 53)), nil, "parameters[p]", "as a string"},
		{"10 MB parameter", valued(structpb.NewStringValue(huge)), nil, "classification", "at most 1000000 characters"},
		{"NUL", valued(structpb.NewStringValue("a\x00b")), nil, "parameters[p]", "NUL"},
		{"reserved", &espmv1.Node{Certname: "free.test", Classification: &espmv1.Classification{
			Parameters: map[string]*structpb.Value{"trusted": structpb.NewBoolValue(true)}}}, nil, "parameters[trusted]", "reserved"},
		{"environment", &espmv1.Node{Certname: "free.test", Classification: &espmv1.Classification{Environment: "Prod!"}}, nil, "environment", "must match"},
		{"group name", &espmv1.Node{Certname: "free.test", Groups: []string{"../web"}}, nil, "groups[0]", "group name must match"},
		{"group twice", &espmv1.Node{Certname: "free.test", Groups: []string{"web", "web"}}, nil, "groups[1]", "named twice"},
	}
}

func badSpecs(t *testing.T) []bad {
	with := func(name string, s *espmv1.CertificateSpec, field, rule string) bad {
		return bad{name, named("free.test"), s, field, rule}
	}
	csr := newCSR(t, "free.test")
	return []bad{
		with("algorithm", &espmv1.CertificateSpec{KeyAlgorithm: "dsa"}, "key_algorithm", "must be one of"),
		with("algorithm with CSR", &espmv1.CertificateSpec{KeyAlgorithm: "ec-p256", CsrPem: csr}, "key_algorithm", "CSR"),
		with("ttl of a second", &espmv1.CertificateSpec{Ttl: durationpb.New(time.Second)}, "ttl", "at least"),
		with("negative ttl", &espmv1.CertificateSpec{Ttl: durationpb.New(-time.Hour)}, "ttl", "at least"),
		with("endless ttl", &espmv1.CertificateSpec{Ttl: &durationpb.Duration{Seconds: math.MaxInt64}}, "ttl", "at most"),
		with("ttl beyond the CA's end", &espmv1.CertificateSpec{Ttl: durationpb.New(40 * 365 * 24 * time.Hour)}, "ttl", "CA"),
		with("wildcard SAN", &espmv1.CertificateSpec{DnsAltNames: []string{"*.test"}}, "dns_alt_names[0]", "wildcards"),
		with("SAN path", &espmv1.CertificateSpec{DnsAltNames: []string{"../x"}}, "dns_alt_names[0]", "labels"),
		with("extension", &espmv1.CertificateSpec{Extensions: map[string]string{"pp_none": "x"}}, "extensions[pp_none]", "short name of Puppet"),
		with("no PEM", &espmv1.CertificateSpec{CsrPem: []byte("hello")}, "csr_pem", "no PEM"),
		with("other CN", &espmv1.CertificateSpec{CsrPem: newCSR(t, "other.test")}, "csr_pem", `must be the certname "free.test", is "other.test"`),
		with("foreign key", &espmv1.CertificateSpec{CsrPem: foreignCSR(t, "free.test")}, "csr_pem", "not signed by its own key"),
		with("wildcard in CSR", &espmv1.CertificateSpec{CsrPem: newCSR(t, "free.test", "*.test")}, "csr_pem", "wildcards"),
		with("name in CSR not asked for", &espmv1.CertificateSpec{CsrPem: newCSR(t, "free.test", "bank.test")}, "csr_pem", "not among dns_alt_names"),
		with("10 MB CSR", &espmv1.CertificateSpec{CsrPem: make([]byte, 10<<20)}, "csr_pem", "at most 65536 bytes"),
	}
}

func TestBadInput(t *testing.T) {
	r := newRig(t)
	for _, b := range append(badNodes(), badSpecs(t)...) {
		t.Run(b.name, func(t *testing.T) {
			before := r.held(t)
			var errs []error
			if b.spec == nil {
				_, err := r.nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: b.node})
				errs = append(errs, err)
			}
			for _, id := range []string{"", "id"} {
				_, err := r.nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: b.node, Certificate: b.spec, RequestId: id})
				errs = append(errs, err)
			}
			for _, err := range errs {
				violations := expect(t, err, codes.InvalidArgument, "INVALID")
				if len(violations) != 1 || !strings.HasPrefix(violations[0].GetField(), b.field) || !strings.Contains(violations[0].GetDescription(), b.rule) {
					t.Errorf("got %v, want field %s, rule %q", violations, b.field, b.rule)
				}
				if text := status.Convert(err).Message(); len(text) > 400 || !strings.Contains(text, b.field) || !strings.Contains(text, b.rule) {
					t.Errorf("not one clear sentence: %q", text)
				}
			}
			if b.name == "ttl beyond the CA's end" {
				return // known only when it is signed, when the registration has been begun and taken back
			}
			if r.held(t) != before {
				t.Error("something was changed")
			}
		})
	}
	p := r.provision(t, "free.test", "id") // the name and the request id are as good as new
	if p.GetNode().GetState() != espmv1.NodeState_NODE_STATE_PROVISIONED || r.issued(t, "free.test") != 1 {
		t.Errorf("got %v, %d certificates", p.GetNode(), r.issued(t, "free.test"))
	}
}

// refusal is a call that must be refused, with words that its message has.
type refusal struct {
	name   string
	call   func() error
	code   codes.Code
	reason string
	says   []string
}

func badReferences(ctx context.Context, r *rig) []refusal {
	parents := &fieldmaskpb.FieldMask{Paths: []string{"parents"}}
	return []refusal{
		{"duplicate", func() error {
			_, err := r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: named("taken.test")})
			return err
		}, codes.AlreadyExists, "NODE_EXISTS", []string{"certname", "taken.test"}},
		{"duplicate group", func() error {
			_, err := r.groups.CreateGroup(ctx, &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: "web"}})
			return err
		}, codes.AlreadyExists, "GROUP_EXISTS", []string{"web"}},
		{"unknown group", func() error {
			_, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "free.test", Groups: []string{"web", "none"}}})
			return err
		}, codes.NotFound, "GROUP_NOT_FOUND", []string{"groups", `"none"`}},
		{"unknown parent", func() error {
			_, err := r.groups.CreateGroup(ctx, &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: "new", Parents: []string{"none"}}})
			return err
		}, codes.NotFound, "GROUP_NOT_FOUND", []string{"parents", `"none"`}},
		{"cycle", func() error {
			_, err := r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{Group: &espmv1.Group{Name: "base", Parents: []string{"shop"}}, UpdateMask: parents})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"parents", "cycle", "base -> shop -> web -> base"}},
		{"cycle of one", func() error {
			_, err := r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{Group: &espmv1.Group{Name: "base", Parents: []string{"base"}}, UpdateMask: parents})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"parents", "itself"}},
	}
}

// badTimes are durations outside their bounds.
func badTimes(ctx context.Context, r *rig) (all []refusal) {
	for _, within := range []time.Duration{-time.Hour, 0, time.Nanosecond, 59 * time.Second, 721 * time.Hour} {
		all = append(all, refusal{"claim within " + within.String(), func() error {
			_, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: named("free.test"), ClaimWithin: durationpb.New(within)})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"claim_within", "from 1m to 30d", node.Duration(within).String()}})
	}
	for _, d := range []time.Duration{-time.Hour, 0} {
		all = append(all, refusal{"not seen for " + d.String(), func() error {
			_, err := r.nodes.ListNodes(ctx, &espmv1.ListNodesRequest{NotSeenFor: durationpb.New(d)})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"not_seen_for", "above 0", d.String()}})
	}
	return append(all, refusal{"a deadline for a protected node", func() error {
		_, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: named("puppet.test"), ClaimWithin: durationpb.New(time.Hour)})
		return err
	}, codes.FailedPrecondition, "CERTNAME_PROTECTED", []string{"launch deadline"}})
}

func badFields(t *testing.T, r *rig) []refusal {
	ctx := t.Context()
	return []refusal{
		{"unknown filter", func() error {
			_, err := r.nodes.ListNodes(ctx, &espmv1.ListNodesRequest{Group: "../x"})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"group"}},
		{"uid", func() error {
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "taken.test", Uid: strings.Repeat("../", 1<<20)})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"uid", "UUID"}},
		{"wait", func() error {
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "taken.test", Wait: durationpb.New(-time.Second)})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"wait", "1h"}},
		{"terminate's reason", func() error {
			_, err := r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "taken.test", Reason: "certificateHold"})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"reason", "must be one of unspecified, keyCompromise", "certificateHold"}},
		{"serial", func() error {
			_, err := r.certs.GetCertificate(ctx, &espmv1.GetCertificateRequest{Serial: "0x" + strings.Repeat("f", 41)})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"serial", "40 digits"}},
		{"request id", func() error {
			_, err := r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: named("free.test"), RequestId: "a b"})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"request_id", "printable"}},
		{"presign with CSR", func() error {
			_, err := r.certs.PresignCertificate(ctx, &espmv1.PresignCertificateRequest{Certname: "taken.test", Certificate: &espmv1.CertificateSpec{CsrPem: newCSR(t, "taken.test")}})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"csr_pem", "SignCertificateRequest"}},
		{"sign without CSR", func() error {
			_, err := r.certs.SignCertificateRequest(ctx, &espmv1.SignCertificateRequestRequest{Certname: "taken.test"})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"csr_pem", "empty"}},
		{"nothing at all", func() error {
			_, err := r.nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{})
			return err
		}, codes.InvalidArgument, "INVALID", []string{"certname", "update_mask"}},
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	r.createGroup(t, &espmv1.Group{Name: "base"})
	r.createGroup(t, &espmv1.Group{Name: "web", Parents: []string{"base"}})
	r.createGroup(t, &espmv1.Group{Name: "shop", Parents: []string{"web"}})
	r.register(t, named("taken.test"))
	before := r.held(t)
	for _, c := range slices.Concat(badReferences(t.Context(), r), badFields(t, r), badTimes(t.Context(), r)) {
		t.Run(c.name, func(t *testing.T) {
			err := c.call()
			expect(t, err, c.code, c.reason)
			for _, word := range c.says {
				if text := status.Convert(err).Message(); !strings.Contains(text, word) || len(text) > 400 {
					t.Errorf("%q does not say %q", text, word)
				}
			}
			if r.held(t) != before {
				t.Error("something was changed")
			}
		})
	}
	r.provision(t, "free.test", "")
}

// What does not fit a message at all is refused by gRPC, before espm has read it.
func TestMessageTooLarge(t *testing.T) {
	r := newRig(t)
	before := r.held(t)
	_, err := r.nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: valued(structpb.NewStringValue(strings.Repeat("x", 17<<20)))})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "16777216") {
		t.Errorf("got %v, want RESOURCE_EXHAUSTED with the limit", err)
	}
	if r.held(t) != before {
		t.Error("something was changed")
	}
	r.register(t, named("free.test"))
}
