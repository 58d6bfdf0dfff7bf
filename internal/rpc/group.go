package rpc

import (
	"context"
	"slices"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type groups struct {
	espmv1.UnimplementedGroupServiceServer
	registry *registry.Registry
}

func (s *groups) CreateGroup(ctx context.Context, req *espmv1.CreateGroupRequest) (*espmv1.CreateGroupResponse, error) {
	g, err := fromGroup(req.GetGroup())
	if err != nil {
		return nil, err
	}
	g, err = s.registry.CreateGroup(ctx, g, req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	out, err := toGroup(g)
	return &espmv1.CreateGroupResponse{Group: out}, err
}

func (s *groups) GetGroup(ctx context.Context, req *espmv1.GetGroupRequest) (*espmv1.GetGroupResponse, error) {
	if err := node.Join(node.CheckGroupName("name", req.GetName()), mayReveal(ctx, req)); err != nil {
		return nil, err
	}
	g, err := s.registry.Group(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	out, err := showGroup(g, req.GetRevealSensitive())
	return &espmv1.GetGroupResponse{Group: out}, err
}

func (s *groups) ListGroups(ctx context.Context, req *espmv1.ListGroupsRequest) (*espmv1.ListGroupsResponse, error) {
	name, limit, after, err := paging("groups", req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	page, err := s.registry.Groups(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	out := &espmv1.ListGroupsResponse{}
	var next string
	out.Groups, next, err = convert(page, toGroup, func(g node.Group) string { return g.Name })
	out.NextPageToken = pageToken(name, next)
	return out, err
}

func (s *groups) UpdateGroup(ctx context.Context, req *espmv1.UpdateGroupRequest) (*espmv1.UpdateGroupResponse, error) {
	nameErr := node.CheckGroupName("group.name", req.GetGroup().GetName())
	change, err := fromGroup(req.GetGroup())
	paths := append([]string{"description", "parents"}, classificationPaths...)
	if err := node.Join(nameErr, err, checkMask(req.GetUpdateMask(), paths), mayReveal(ctx, req)); err != nil {
		return nil, err
	}
	mask := req.GetUpdateMask().GetPaths()
	edit := func(g *node.Group) (err error) {
		if slices.Contains(mask, "description") {
			g.Description = change.Description
		}
		if slices.Contains(mask, "parents") {
			g.Parents = slices.Clone(change.Parents)
		}
		g.Classification, err = editClassification(g.Classification, change.Classification, mask, req.GetRevealSensitive())
		return err
	}
	g, err := s.registry.UpdateGroup(ctx, change.Name, req.GetGroup().GetRevision(), edit, req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	out, err := showGroup(g, req.GetRevealSensitive())
	return &espmv1.UpdateGroupResponse{Group: out}, err
}

func (s *groups) DeleteGroup(ctx context.Context, req *espmv1.DeleteGroupRequest) (*espmv1.DeleteGroupResponse, error) {
	if err := node.CheckGroupName("name", req.GetName()); err != nil {
		return nil, err
	}
	err := s.registry.DeleteGroup(ctx, req.GetName(), req.GetRevision(), req.GetValidateOnly())
	return &espmv1.DeleteGroupResponse{}, err
}
