package setup

import (
	"context"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/site"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// certificates are those that a configuration lets espm show: the network listener's, and the one for Puppet Server. A
// file that is not set is Puppet's.
func certificates(ctx context.Context, c config.Config) (all []node.Credential, err error) {
	files := map[string]string{}
	if c.Network != nil {
		files[node.ServerCertificate] = c.Network.Certificate
	}
	if set := c.Authority.PuppetServer; set != nil {
		files[node.ClientCertificate] = set.Certificate
	}
	for _, kind := range node.CredentialKinds {
		path, used := files[kind]
		if !used {
			continue
		}
		if path == "" {
			puppet, err := site.Files(ctx)
			if err != nil {
				return all, err
			}
			path = puppet.Certificate
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return all, err
		}
		cert, err := pemfile.First(text)
		if err != nil {
			return all, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, node.Credential{Kind: kind, Name: path, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter})
	}
	return all, nil
}

// expiring asks the daemon on a local socket for the tokens that expire and are not revoked.
func expiring(ctx context.Context, socket string) (all []node.Credential, err error) {
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	req := &espmv1.ListTokensRequest{PageSize: 1000}
	for {
		page, err := espmv1.NewTokenServiceClient(conn).ListTokens(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, t := range page.GetTokens() {
			if t.GetExpireTime() == nil || t.GetRevokeTime() != nil {
				continue
			}
			begin := t.GetCreateTime().AsTime()
			if rotated := t.GetRotateTime(); rotated != nil {
				begin = rotated.AsTime()
			}
			all = append(all, node.Credential{Kind: node.BearerToken, Name: t.GetName(), NotBefore: begin, NotAfter: t.GetExpireTime().AsTime()})
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return all, nil
		}
	}
}
