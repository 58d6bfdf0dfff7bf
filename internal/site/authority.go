package site

import (
	"context"
	"fmt"

	"github.com/espm-project/espm/internal/ca/pkcs11"
	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/store"
)

// OpenToken opens the token that authority.directory.key names. The caller closes it.
func OpenToken(setting string) (*pkcs11.Key, error) {
	uri, err := pkcs11.ParseURI(setting)
	if err != nil {
		return nil, fmt.Errorf("authority.directory.key: %w", err)
	}
	key, err := pkcs11.Open(uri)
	if err != nil {
		return nil, fmt.Errorf("authority.directory.key: %w", err)
	}
	return key, nil
}

// OpenPuppetServer sets the missing settings and opens the authority.
func OpenPuppetServer(ctx context.Context, set config.PuppetServer, o puppetserver.Options) (*puppetserver.Authority, error) {
	p, err := FromPuppet(ctx, set)
	if err != nil {
		return nil, err
	}
	o.URL, o.Certificate, o.Key, o.CA = p.URL, p.Certificate, p.Key, p.CA
	authority, err := puppetserver.New(o)
	return authority, FoundBy(set, err)
}

// ENCSettings returns the settings that espm-enc needs while the daemon is down.
func ENCSettings(c config.Config) store.ENCSettings {
	return store.ENCSettings{UnknownNodes: c.ENC.UnknownNodes, Command: c.ENC.Command}
}
