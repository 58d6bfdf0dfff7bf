package setup

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/ca/pkcs11"
	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/clock"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/doctor"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/site"
)

// Examine finds the problems on this host, with the daemon running or not. It changes nothing.
func Examine(ctx context.Context, file string) []doctor.Finding {
	c, err := config.Load(file)
	if err != nil {
		return []doctor.Finding{{Check: "configuration", Severity: doctor.Failure, What: err.Error()}}
	}
	h := doctor.Host{Config: c, Now: time.Now, Puppet: func(ctx context.Context, names ...string) (map[string]string, error) {
		settings, err := site.Settings(ctx, names...)
		if errors.Is(err, site.ErrNoPuppet) {
			err = doctor.ErrNoPuppet
		}
		return settings, err
	}}
	h.CA = func(ctx context.Context) (doctor.CA, error) {
		if dir := c.Authority.Directory; dir != nil {
			return examineDirectory(dir)
		}
		return examineServer(ctx, *c.Authority.PuppetServer)
	}
	h.Token = func() error { return examineToken(c.Authority.Directory) }
	h.Unrevoked = func(ctx context.Context) ([]doctor.Unrevoked, error) { return unrevoked(ctx, c.Listen) }
	h.Certificates = func(ctx context.Context) ([]node.Credential, error) { return certificates(ctx, c) }
	h.Tokens = func(ctx context.Context) ([]node.Credential, error) { return expiring(ctx, c.Listen) }
	h.Clock, h.Synchronized = func(ctx context.Context) (doctor.Clock, error) { return askClock(ctx, c.Listen) }, clock.Synchronized
	ok := doctor.Finding{Check: "configuration", Severity: doctor.OK, What: c.File}
	return append([]doctor.Finding{ok}, doctor.Examine(ctx, h)...)
}

func examineDirectory(dir *config.Directory) (doctor.CA, error) {
	inToken := dir.Key != ""
	status, err := directory.Inspect(dir.Path, inToken)
	if err != nil {
		return doctor.CA{}, err
	}
	out := examined(status.Status)
	if !status.Key && !inToken {
		out.Problems = append(out.Problems, doctor.Problem{What: fmt.Sprintf("%s has no ca_key.pem: espm can't sign", dir.Path)})
	}
	return out, nil
}

// examineToken opens the key in the token and compares it with the CA's certificate.
func examineToken(dir *config.Directory) (err error) {
	key, err := site.OpenToken(dir.Key)
	if errors.Is(err, pkcs11.ErrNotBuiltIn) {
		return fmt.Errorf("%w: %w", doctor.ErrNoTokens, pkcs11.ErrNotBuiltIn)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	status, err := directory.Inspect(dir.Path, true)
	if err != nil {
		return err
	}
	if public, ok := status.Public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return fmt.Errorf("the token's key does not belong to %q, the CA of %s", status.Subject, dir.Path)
	}
	return nil
}

func examined(s ca.Status) doctor.CA {
	out := doctor.CA{Subject: s.Subject, NotBefore: s.NotBefore, NotAfter: s.NotAfter}
	for _, c := range append([]ca.CRLStatus{s.CRL}, s.Foreign...) {
		if c.Outside {
			continue
		}
		out.CRLs = append(out.CRLs, doctor.CRL{Issuer: c.Issuer, ThisUpdate: c.ThisUpdate, NextUpdate: c.NextUpdate})
	}
	return out
}

func examineServer(ctx context.Context, set config.PuppetServer) (doctor.CA, error) {
	authority, err := site.OpenPuppetServer(ctx, set, puppetserver.Options{Timeout: 20 * time.Second})
	if err != nil {
		return doctor.CA{}, err
	}
	defer authority.Close()
	version, problems := authority.Probe(ctx)
	var out doctor.CA
	if status, err := authority.Brief(ctx); err == nil {
		out = examined(status)
		out.Clock, _ = authority.Clock(ctx)
	} else if len(problems) == 0 {
		return out, err
	}
	out.Version = version
	for _, p := range problems {
		mend := ""
		if forbidden, ok := errors.AsType[*puppetserver.ForbiddenError](p); ok && forbidden.NotPresented == "" {
			mend = forbidden.Rule
		}
		out.Problems = append(out.Problems, doctor.Problem{What: p.Error(), Mend: mend})
	}
	return out, nil
}
