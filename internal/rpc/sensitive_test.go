package rpc

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	hunter = "hunter2"
	mark   = "classes[mysql].root_password"
)

// passworded is a classification with a sensitive value, and one that is none.
func passworded(value string) *espmv1.Classification {
	return &espmv1.Classification{
		Classes: map[string]*espmv1.ClassParameters{"mysql": {Parameters: map[string]*structpb.Value{
			"root_password": structpb.NewStringValue(value), "port": structpb.NewNumberValue(3306),
		}}},
		Sensitive: []string{mark},
	}
}

func (r *rig) classify(t *testing.T, name string, reveal bool) string {
	t.Helper()
	resp, err := r.classifier.ClassifyNode(t.Context(), &espmv1.ClassifyNodeRequest{Certname: name, RevealSensitive: reveal})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetYaml()
}

// answers are those of every call that shows a node or a group.
func answers(t *testing.T, r *rig) map[string]func() (proto.Message, error) {
	ctx := t.Context()
	labels := &fieldmaskpb.FieldMask{Paths: []string{"labels"}}
	watch, err := r.nodes.WatchNodes(ctx, &espmv1.WatchNodesRequest{AfterRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]func() (proto.Message, error){
		"GetNode": func() (proto.Message, error) {
			return r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: "own.test"})
		},
		"ListNodes": func() (proto.Message, error) { return r.nodes.ListNodes(ctx, &espmv1.ListNodesRequest{}) },
		"UpdateNode": func() (proto.Message, error) {
			return r.nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{Node: named("own.test"), UpdateMask: labels})
		},
		"WatchNodes": func() (proto.Message, error) {
			for {
				if m, err := watch.Recv(); err != nil || m.GetCertname() == "own.test" {
					return m, err
				}
			}
		},
		"RegisterNode": func() (proto.Message, error) {
			n := named("other.test")
			n.Classification = passworded(hunter)
			return r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: n})
		},
		"ProvisionNode": func() (proto.Message, error) {
			n := named("made.test")
			n.Classification = passworded(hunter)
			return r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: n})
		},
		"TerminateNode": func() (proto.Message, error) {
			return r.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: "own.test", ValidateOnly: true})
		},
		"CreateGroup": func() (proto.Message, error) {
			return r.groups.CreateGroup(ctx, &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: "more", Classification: passworded(hunter)}})
		},
		"GetGroup":   func() (proto.Message, error) { return r.groups.GetGroup(ctx, &espmv1.GetGroupRequest{Name: "db"}) },
		"ListGroups": func() (proto.Message, error) { return r.groups.ListGroups(ctx, &espmv1.ListGroupsRequest{}) },
		"UpdateGroup": func() (proto.Message, error) {
			return r.groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{Group: &espmv1.Group{Name: "db"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description"}}})
		},
		"ClassifyNode": func() (proto.Message, error) {
			return r.classifier.ClassifyNode(ctx, &espmv1.ClassifyNodeRequest{Certname: "heir.test"})
		},
	}
}

func secretRig(t *testing.T) *rig {
	r := newRig(t)
	r.createGroup(t, &espmv1.Group{Name: "db", Classification: passworded(hunter)})
	r.register(t, &espmv1.Node{Certname: "heir.test", Groups: []string{"db"}})
	r.register(t, &espmv1.Node{Certname: "own.test", Classification: passworded(hunter)})
	return r
}

func TestAnswersRedact(t *testing.T) {
	r := secretRig(t)
	for name, call := range answers(t, r) {
		resp, err := call()
		if err != nil {
			t.Fatal(name, err)
		}
		text := protojson.Format(resp)
		if strings.Contains(text, hunter) || !strings.Contains(text, node.Placeholder) {
			t.Errorf("%s: got %s", name, text)
		}
	}
	for name, want := range map[string]string{"heir.test": hunter, "own.test": hunter} {
		if yaml := r.classify(t, name, true); !strings.Contains(yaml, want) {
			t.Errorf("%s revealed: got %s", name, yaml)
		}
		a, _ := enc.Ask(t.Context(), r.store, enc.Unknown{}, name, false)
		if !strings.Contains(a.Text, want) {
			t.Errorf("the ENC says of %s: %s", name, a.Text)
		}
	}
	n, err := r.nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: "own.test", RevealSensitive: true})
	if err != nil || !proto.Equal(n.GetNode().GetClassification(), passworded(hunter)) {
		t.Errorf("revealed: got %v, %v", n, err)
	}
	g, err := r.groups.GetGroup(t.Context(), &espmv1.GetGroupRequest{Name: "db", RevealSensitive: true})
	if err != nil || !proto.Equal(g.GetGroup().GetClassification(), passworded(hunter)) {
		t.Errorf("revealed: got %v, %v", g, err)
	}
	r.terminate(t, "own.test")
	n, err = r.nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: "own.test", Uid: n.GetNode().GetUid(), RevealSensitive: true})
	if err != nil || !proto.Equal(n.GetNode().GetClassification(), passworded(node.Placeholder)) {
		t.Errorf("the tombstone has %v, %v", n, err)
	}
}

// Who is no admin is told nothing, whatever is asked; nor may a mark be taken off. What an admin is told has its line.
func TestRevealIsForAdmins(t *testing.T) {
	r := secretRig(t)
	others := []*rig{r.as(t, provisioner("token:p")), r.as(t, node.Caller{Name: "token:r", Role: node.Reader})}
	before := r.held(t)
	for _, other := range others {
		for name, call := range revealingCalls(t.Context(), other.conn) {
			expect(t, call(), codes.PermissionDenied, "PERMISSION_DENIED")
			if t.Failed() {
				t.Fatal(name)
			}
		}
	}
	if r.held(t) != before {
		t.Error("something was changed")
	}
	var last int64
	r.fresh(t, &last)
	for name, call := range revealingCalls(t.Context(), r.conn) {
		if err := call(); err != nil {
			t.Errorf("%s by an admin: %v", name, err)
		}
		var line *espmv1.AuditLine
		for _, l := range r.fresh(t, &last) {
			if l.GetAction() == string(node.ActionRead) && l.GetOutcome() == "ok" {
				line = l
			}
		}
		if !strings.HasSuffix(line.GetMethod(), "/"+name) || line.GetPrincipal() == "" || line.GetComment() == "" {
			t.Errorf("%s has the line %v", name, line)
		}
	}
}

func revealingCalls(ctx context.Context, conn *grpc.ClientConn) map[string]func() error {
	nodes, groups := espmv1.NewNodeServiceClient(conn), espmv1.NewGroupServiceClient(conn)
	marks := &fieldmaskpb.FieldMask{Paths: []string{"classification.sensitive"}}
	return map[string]func() error{
		"GetNode": func() error {
			_, err := nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: "own.test", RevealSensitive: true})
			return err
		},
		"UpdateNode": func() error {
			_, err := nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{Node: named("own.test"), UpdateMask: marks, RevealSensitive: true})
			return err
		},
		"GetGroup": func() error {
			_, err := groups.GetGroup(ctx, &espmv1.GetGroupRequest{Name: "db", RevealSensitive: true})
			return err
		},
		"UpdateGroup": func() error {
			_, err := groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{Group: &espmv1.Group{Name: "db"}, UpdateMask: marks, RevealSensitive: true})
			return err
		},
		"ClassifyNode": func() error {
			_, err := espmv1.NewClassifierServiceClient(conn).ClassifyNode(ctx, &espmv1.ClassifyNodeRequest{Certname: "own.test", RevealSensitive: true})
			return err
		},
	}
}

// One who can't see a value reads, changes something else and writes all back.
func TestWritingBackWhatWasShown(t *testing.T) {
	r := secretRig(t)
	got, err := r.nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: "own.test"})
	if err != nil {
		t.Fatal(err)
	}
	n := got.GetNode()
	n.Classification.Classes["mysql"].Parameters["port"] = structpb.NewNumberValue(3307)
	all := &fieldmaskpb.FieldMask{Paths: []string{"classification"}}
	if _, err := r.nodes.UpdateNode(t.Context(), &espmv1.UpdateNodeRequest{Node: n, UpdateMask: all}); err != nil {
		t.Fatal(err)
	}
	if yaml := r.classify(t, "own.test", true); !strings.Contains(yaml, hunter) || !strings.Contains(yaml, "3307") {
		t.Errorf("got %s", yaml)
	}
	g := &espmv1.Group{Name: "db", Classification: passworded(node.Placeholder)}
	if _, err := r.groups.UpdateGroup(t.Context(), &espmv1.UpdateGroupRequest{Group: g, UpdateMask: all}); err != nil {
		t.Fatal(err)
	}
	if yaml := r.classify(t, "heir.test", true); !strings.Contains(yaml, hunter) {
		t.Errorf("got %s", yaml)
	}
}

func TestSensitiveRefusals(t *testing.T) {
	r := secretRig(t)
	ctx := t.Context()
	update := func(c *espmv1.Classification, paths ...string) error {
		n := &espmv1.Node{Certname: "own.test", Classification: c}
		_, err := r.nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{Node: n, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
		return err
	}
	unmarked := passworded(node.Placeholder)
	unmarked.Sensitive = nil
	large := passworded(hunter)
	large.Classes["mysql"].Parameters["root_password"] = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewNumberValue(1 << 60)}})
	before := r.held(t)
	for _, c := range []struct {
		err         error
		field, rule string
	}{
		{update(nil, "classification.sensitive"), "classification.sensitive", "would take the mark off " + mark + ", and so show"},
		{update(unmarked, "classification"), mark, "give the value"},
		{update(unmarked, "classification.classes", "classification.sensitive"), mark, "give the value"},
		{update(&espmv1.Classification{Sensitive: []string{"parameters[none]"}}, "classification"), "sensitive", "must name a value that is set here"},
		{update(large, "classification"), mark, "which is not told, as it is sensitive"},
		{registering(ctx, r, passworded(node.Placeholder)), mark, "give the value"},
		{registering(ctx, r, unmarked), mark, "give the value"},
	} {
		bad := expect(t, c.err, codes.InvalidArgument, "INVALID")
		if len(bad) != 1 || bad[0].GetField() != c.field || !strings.Contains(bad[0].GetDescription(), c.rule) {
			t.Errorf("got %v, want %s: %s", bad, c.field, c.rule)
		}
	}
	if r.held(t) != before {
		t.Error("something was changed")
	}
}

func registering(ctx context.Context, r *rig, c *espmv1.Classification) error {
	_, err := r.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "new.test", Classification: c}})
	return err
}
