package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/doctor"
)

// Examine looks for what is wrong on this host, with the daemon running or not. It changes nothing.
func Examine(ctx context.Context, file string) []doctor.Finding {
	c, err := config.Load(file)
	if err != nil {
		return []doctor.Finding{{Check: "configuration", Severity: doctor.Failure, What: err.Error()}}
	}
	h := doctor.Host{Config: c, Now: time.Now, Puppet: func(ctx context.Context, names ...string) (map[string]string, error) {
		settings, err := puppetSettings(ctx, names...)
		if errors.Is(err, errNoPuppet) {
			err = doctor.ErrNoPuppet
		}
		return settings, err
	}}
	h.CA = func(ctx context.Context) (doctor.CA, error) {
		if dir := c.Authority.Directory; dir != nil {
			return examineDirectory(dir.Path)
		}
		return examineServer(ctx, *c.Authority.PuppetServer)
	}
	ok := doctor.Finding{Check: "configuration", Severity: doctor.OK, What: c.File}
	return append([]doctor.Finding{ok}, doctor.Examine(ctx, h)...)
}

func examineDirectory(path string) (doctor.CA, error) {
	status, err := directory.Inspect(path)
	if err != nil {
		return doctor.CA{}, err
	}
	out := examined(status.Status)
	if !status.Key {
		out.Problems = append(out.Problems, doctor.Problem{What: fmt.Sprintf("%s has no ca_key.pem: espm can't sign", path)})
	}
	return out, nil
}

func examined(s ca.Status) doctor.CA {
	out := doctor.CA{Subject: s.Subject, NotAfter: s.NotAfter}
	for _, c := range append([]ca.CRLStatus{s.CRL}, s.Foreign...) {
		out.CRLs = append(out.CRLs, doctor.CRL{Issuer: c.Issuer, ThisUpdate: c.ThisUpdate, NextUpdate: c.NextUpdate})
	}
	return out
}

func examineServer(ctx context.Context, set config.PuppetServer) (doctor.CA, error) {
	authority, err := openPuppetServer(ctx, set, puppetserver.Options{Timeout: 20 * time.Second})
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
		if forbidden, ok := errors.AsType[*puppetserver.ForbiddenError](p); ok && forbidden.Unseen == "" {
			mend = forbidden.Rule
		}
		out.Problems = append(out.Problems, doctor.Problem{What: p.Error(), Mend: mend})
	}
	return out, nil
}
