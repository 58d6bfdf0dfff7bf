package rpc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type nodes struct {
	espmv1.UnimplementedNodeServiceServer
	registry *registry.Registry
	now      func() time.Time
}

func (s *nodes) RegisterNode(ctx context.Context, req *espmv1.RegisterNodeRequest) (*espmv1.RegisterNodeResponse, error) {
	n, err := fromNode(req.GetNode())
	if err != nil {
		return nil, err
	}
	n, err = s.registry.Register(ctx, n, req.GetRequestId(), req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	out, err := toNode(n)
	return &espmv1.RegisterNodeResponse{Node: out}, err
}

func (s *nodes) GetNode(ctx context.Context, req *espmv1.GetNodeRequest) (*espmv1.GetNodeResponse, error) {
	name, nameErr := node.ParseCertname(req.GetCertname())
	if err := node.Join(nameErr, checkUID(req.GetUid()), mayReveal(ctx, req)); err != nil {
		return nil, err
	}
	n, err := s.registry.Get(ctx, name, node.UID(req.GetUid()))
	if err != nil {
		return nil, err
	}
	out, err := showNode(n, req.GetRevealSensitive())
	if err != nil {
		return nil, err
	}
	certs, err := s.certificates(ctx, n)
	return &espmv1.GetNodeResponse{Node: out, Certificates: certs}, err
}

// certificates returns the certificates that a registration holds, or held last, without the PEM.
func (s *nodes) certificates(ctx context.Context, n node.Node) ([]*espmv1.Certificate, error) {
	var out []*espmv1.Certificate
	for _, serial := range n.Serials {
		cert, rev, err := s.registry.Certificate(ctx, serial)
		if errors.Is(err, node.ErrCertificateNotFound) {
			continue // the registration is terminated, and the record of the certificate was removed
		}
		if err != nil {
			return nil, err
		}
		p, err := toListed(cert, s.now())
		if err != nil {
			return nil, err
		}
		if rev != nil {
			p.Revocation = toRevocation(*rev)
		}
		out = append(out, p)
	}
	return out, nil
}

func (s *nodes) ListNodes(ctx context.Context, req *espmv1.ListNodesRequest) (*espmv1.ListNodesResponse, error) {
	filter := registry.NodeQuery{
		NodeFilter: store.NodeFilter{Labels: req.GetLabels(), Group: req.GetGroup(), Owner: req.GetOwner()},
		NotSeenFor: req.GetNotSeenFor().AsDuration(),
	}
	var groupErr, seenErr error
	if filter.Group != "" {
		groupErr = node.CheckGroupName("group", filter.Group)
	}
	if req.GetNotSeenFor() != nil && filter.NotSeenFor <= 0 {
		seenErr = node.Invalid("not_seen_for", "must be above 0, is %v", filter.NotSeenFor)
	}
	if err := node.Join(groupErr, seenErr); err != nil {
		return nil, err
	}
	name, limit, after, err := paging(filter, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	page, err := s.registry.List(ctx, filter, after, limit)
	if err != nil {
		return nil, err
	}
	out := &espmv1.ListNodesResponse{Revision: page.Revision}
	var next string
	out.Nodes, next, err = convert(page, toNode, func(n node.Node) string { return string(n.Certname) })
	out.NextPageToken = pageToken(name, next)
	return out, err
}

func (s *nodes) UpdateNode(ctx context.Context, req *espmv1.UpdateNodeRequest) (*espmv1.UpdateNodeResponse, error) {
	name, nameErr := node.ParseCertname(req.GetNode().GetCertname())
	change, err := fromNode(req.GetNode())
	paths := append([]string{"groups", "labels", "owner"}, classificationPaths...)
	if err := node.Join(nameErr, err, checkUID(req.GetNode().GetUid()), checkMask(req.GetUpdateMask(), paths), mayReveal(ctx, req)); err != nil {
		return nil, err
	}
	expect := registry.Expect{UID: node.UID(req.GetNode().GetUid()), Revision: req.GetNode().GetRevision()}
	mask := req.GetUpdateMask().GetPaths()
	edit := func(n *node.Node) (err error) {
		if slices.Contains(mask, "owner") {
			n.Owner = req.GetNode().GetOwner()
		}
		if slices.Contains(mask, "groups") {
			n.Groups = slices.Clone(change.Groups)
		}
		if slices.Contains(mask, "labels") {
			n.Labels = change.Labels
		}
		n.Classification, err = editClassification(n.Classification, change.Classification, mask, req.GetRevealSensitive())
		return err
	}
	n, err := s.registry.Update(ctx, name, expect, edit, req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	out, err := showNode(n, req.GetRevealSensitive())
	return &espmv1.UpdateNodeResponse{Node: out}, err
}

// checkUID accepts an empty uid, and a uid in the form that espm returns.
func checkUID(uid string) error {
	if parsed, err := uuid.Parse(uid); uid != "" && (err != nil || parsed.String() != uid) {
		return node.Invalid("uid", "%q: must be a UUID in lower case, as espm returned it", short(uid))
	}
	return nil
}

func checkMask(mask *fieldmaskpb.FieldMask, known []string) error {
	if len(mask.GetPaths()) == 0 {
		return node.Invalid("update_mask", "must name the fields to change, any of %s", strings.Join(known, ", "))
	}
	for _, p := range mask.GetPaths() {
		if !slices.Contains(known, p) {
			return node.Invalid("update_mask", "%q can't be changed, only %s", short(p), strings.Join(known, ", "))
		}
	}
	return nil
}

func (s *nodes) ProvisionNode(ctx context.Context, req *espmv1.ProvisionNodeRequest) (*espmv1.ProvisionNodeResponse, error) {
	n, err := fromNode(req.GetNode())
	if err != nil {
		return nil, err
	}
	if n.ClaimWithin, err = fromClaimWithin(req.GetClaimWithin()); err != nil {
		return nil, err
	}
	p, err := s.registry.Provision(ctx, n, fromSpec(req.GetCertificate()), req.GetRequestId(), req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	out, err := toNode(p.Node)
	return &espmv1.ProvisionNodeResponse{Node: out, Bundle: toBundle(p.Bundle, req.GetCertificate())}, err
}

// fromClaimWithin refuses an explicit 0, because node.Node.ClaimWithin 0 means no deadline.
func fromClaimWithin(d *durationpb.Duration) (time.Duration, error) {
	if d != nil && d.AsDuration() == 0 {
		return 0, node.Invalid("claim_within", "from %v to %v, is 0s; leave it out for none", node.Duration(node.MinClaimWithin), node.Duration(node.MaxClaimWithin))
	}
	return d.AsDuration(), nil
}

func (s *nodes) TerminateNode(ctx context.Context, req *espmv1.TerminateNodeRequest) (*espmv1.TerminateNodeResponse, error) {
	name, nameErr := node.ParseCertname(req.GetCertname())
	reason, reasonErr := parseReason(req.GetReason())
	wait, waitErr := parseWait(req.GetWait())
	if err := node.Join(nameErr, checkUID(req.GetUid()), waitErr, reasonErr); err != nil {
		return nil, err
	}
	end := registry.TerminateRequest{Certname: name, UID: node.UID(req.GetUid()), Reason: reason}
	t, err := s.registry.Terminate(ctx, end, wait, req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	resp := &espmv1.TerminateNodeResponse{IssueOpen: t.IssueOpen}
	for _, r := range t.Revocations {
		resp.Revocations = append(resp.Revocations, toRevocation(r))
	}
	resp.Node, err = toNode(t.Node)
	return resp, err
}

func (s *nodes) ForgetNode(ctx context.Context, req *espmv1.ForgetNodeRequest) (*espmv1.ForgetNodeResponse, error) {
	name, nameErr := node.ParseCertname(req.GetCertname())
	if err := node.Join(nameErr, checkUID(req.GetUid())); err != nil {
		return nil, err
	}
	n, certs, err := s.registry.Forget(ctx, name, node.UID(req.GetUid()), req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	resp := &espmv1.ForgetNodeResponse{}
	for _, cert := range certs {
		if s.now().After(cert.NotAfter) {
			continue
		}
		out, err := toListed(cert, s.now())
		if err != nil {
			return nil, err
		}
		resp.Certificates = append(resp.Certificates, out)
	}
	resp.Node, err = toNode(n)
	return resp, err
}

func (s *nodes) WatchNodes(req *espmv1.WatchNodesRequest, stream grpc.ServerStreamingServer[espmv1.WatchNodesResponse]) error {
	ctx := stream.Context()
	after, err := watchFrom(ctx, s.registry, req.GetAfterRevision())
	if err != nil {
		return err
	}
	for ev, err := range s.registry.WatchNodes(ctx, after) {
		if err != nil {
			return err
		}
		out := &espmv1.WatchNodesResponse{Revision: ev.Revision, Certname: string(ev.Certname)}
		if ev.Node != nil {
			if out.Node, err = toNode(*ev.Node); err != nil {
				return err
			}
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// watchFrom returns the revision after which a watch starts: the requested revision, or the current one.
func watchFrom(ctx context.Context, r *registry.Registry, asked int64) (int64, error) {
	switch {
	case asked < 0:
		return 0, node.Invalid("after_revision", "must not be negative, is %d", asked)
	case asked == 0:
		return r.Revision(ctx)
	default:
		return asked, nil
	}
}
