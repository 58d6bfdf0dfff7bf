package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type tokens struct {
	espmv1.UnimplementedTokenServiceServer
	tokens   *auth.Tokens
	registry *registry.Registry
}

func (s *tokens) CreateToken(ctx context.Context, req *espmv1.CreateTokenRequest) (*espmv1.CreateTokenResponse, error) {
	ttl, err := fromTTL(req.GetTtl())
	if err != nil {
		return nil, err
	}
	grant := fromGrant(req.GetGrant())
	warnings, err := s.registry.ReviewGrant(grant)
	if err != nil {
		return nil, err
	}
	t, secret, err := s.tokens.Create(ctx, auth.NewToken{Name: req.GetName(), Role: roleOf(req.GetRole()), Grant: grant, TTL: ttl})
	if err != nil {
		return nil, err
	}
	return &espmv1.CreateTokenResponse{Token: toToken(t), Secret: string(secret.Bytes()), Warnings: warnings}, nil
}

// fromTTL refuses an explicit 0, because auth.NewToken.TTL 0 means the default.
func fromTTL(d *durationpb.Duration) (time.Duration, error) {
	if d != nil && d.AsDuration() == 0 {
		return 0, node.Invalid("ttl", "from %v to %v, is 0s; leave it out for the default", node.Duration(auth.MinTokenTTL), node.Duration(auth.MaxTokenTTL))
	}
	return d.AsDuration(), nil
}

func (s *tokens) GetToken(ctx context.Context, req *espmv1.GetTokenRequest) (*espmv1.GetTokenResponse, error) {
	if err := node.CheckTokenName("name", req.GetName()); err != nil {
		return nil, err
	}
	t, err := s.registry.Token(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &espmv1.GetTokenResponse{Token: toToken(t)}, nil
}

func (s *tokens) ListTokens(ctx context.Context, req *espmv1.ListTokensRequest) (*espmv1.ListTokensResponse, error) {
	name, limit, after, err := paging("tokens", req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	page, err := s.registry.Tokens(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	out := &espmv1.ListTokensResponse{}
	var next string
	out.Tokens, next, err = convert(page, func(t node.Token) (*espmv1.Token, error) { return toToken(t), nil }, func(t node.Token) string { return t.Name })
	out.NextPageToken = pageToken(name, next)
	return out, err
}

func (s *tokens) RotateToken(ctx context.Context, req *espmv1.RotateTokenRequest) (*espmv1.RotateTokenResponse, error) {
	ttl, err := fromTTL(req.GetTtl())
	if err != nil {
		return nil, err
	}
	t, secret, err := s.tokens.Rotate(ctx, req.GetName(), ttl)
	if err != nil {
		return nil, err
	}
	return &espmv1.RotateTokenResponse{Token: toToken(t), Secret: string(secret.Bytes())}, nil
}

func (s *tokens) RevokeToken(ctx context.Context, req *espmv1.RevokeTokenRequest) (*espmv1.RevokeTokenResponse, error) {
	t, err := s.tokens.Revoke(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &espmv1.RevokeTokenResponse{Token: toToken(t)}, nil
}

var roles = map[node.Role]espmv1.Role{
	node.Admin:       espmv1.Role_ROLE_ADMIN,
	node.Provisioner: espmv1.Role_ROLE_PROVISIONER,
	node.Reader:      espmv1.Role_ROLE_READER,
}

func roleOf(p espmv1.Role) node.Role {
	for r, wire := range roles {
		if wire == p {
			return r
		}
	}
	return ""
}

func fromGrant(p *espmv1.Grant) node.Grant {
	return node.Grant{
		Names: fromList(p.GetNames()), Environments: fromList(p.GetEnvironments()),
		Groups: fromList(p.GetGroups()), Extensions: fromList(p.GetExtensions()),
		MaxTTL:            p.GetMaxTtl().AsDuration(),
		RequestsPerSecond: p.GetRequestsPerSecond(), OpenProvisions: int(p.GetOpenProvisions()),
	}
}

// fromList returns nil only for an unset list: an empty list allows nothing.
func fromList(p *espmv1.StringList) []string {
	if p == nil {
		return nil
	}
	return append([]string{}, p.GetValues()...)
}

func toList(values []string) *espmv1.StringList {
	if values == nil {
		return nil
	}
	return &espmv1.StringList{Values: values}
}

func toToken(t node.Token) *espmv1.Token {
	g := t.Grant
	grant := &espmv1.Grant{
		Names: toList(g.Names), Environments: toList(g.Environments), Groups: toList(g.Groups), Extensions: toList(g.Extensions),
		RequestsPerSecond: g.RequestsPerSecond, OpenProvisions: int32(g.OpenProvisions), // #nosec G115 -- at most 10,000
	}
	if g.MaxTTL > 0 {
		grant.MaxTtl = durationpb.New(g.MaxTTL)
	}
	return &espmv1.Token{
		Name: t.Name, Role: roles[t.Role], Grant: grant,
		CreateTime: toTime(t.CreatedAt), CreatePrincipal: t.CreatedBy, RotateTime: toTime(t.RotatedAt),
		ExpireTime: toTime(t.ExpiresAt), RevokeTime: toTime(t.RevokedAt), LastUseTime: toTime(t.UsedAt),
	}
}
