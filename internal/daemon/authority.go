package daemon

import (
	"context"
	"crypto"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/clock"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/site"
)

// authority signs and revokes certificates, and lists those that it has issued.
type authority interface {
	ca.Authority
	registry.Signed
}

// authority opens the authority that the configuration names.
func (d *daemon) authority(ctx context.Context) (authority, error) {
	if dir := d.config.Authority.Directory; dir != nil {
		key, err := d.token(dir.Key)
		if err != nil {
			return nil, err
		}
		authority, err := directory.Open(dir.Path, directory.Options{
			Key: key, Publish: dir.Publish, TTL: time.Duration(d.config.Issue.TTL), CRLValidity: time.Duration(dir.CRL.Validity), KeepExpired: time.Duration(dir.CRL.KeepExpired), Clock: d.clock, Log: d.log,
		})
		if err != nil {
			return nil, err
		}
		d.closers = append(d.closers, authority.Close)
		d.wg.Go(func() { authority.Run(ctx) })
		d.kept = func() *auth.KeptCRL { return (*auth.KeptCRL)(authority.Published()) }
		return authority, nil
	}
	pending, err := d.store.Pending(ctx, "", 1)
	if err != nil {
		return nil, err
	}
	set := *d.config.Authority.PuppetServer
	authority, err := site.OpenPuppetServer(ctx, set, puppetserver.Options{
		TTL: time.Duration(d.config.Issue.TTL), Log: d.log, Interrupted: len(pending) > 0,
	})
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, authority.Close)
	d.client = authority.Credential
	d.wg.Go(func() { d.checkServer(ctx, authority, set.URL) })
	return authority, nil
}

// accepting is a Guard whose Accept has the revocations tried again that waited for it.
type accepting struct {
	*clock.Guard
	kick func()
}

// Accept implements rpc.Clock.
func (a accepting) Accept(ctx context.Context) error {
	err := a.Guard.Accept(ctx)
	a.kick()
	return err
}

// token opens the token that has the CA's key, and returns nil if a file has it.
func (d *daemon) token(setting string) (crypto.Signer, error) {
	if setting == "" {
		return nil, nil
	}
	key, err := site.OpenToken(setting)
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, key.Close)
	return key, nil
}

// logAgain is how often the log says that the CA's certificate is not in force.
const logAgain = time.Hour

// logNotInForce logs, at the start and then periodically, that the CA's certificate has ended or is not valid yet.
func logNotInForce(ctx context.Context, brief func(context.Context) (ca.Status, error), now func() time.Time, period time.Duration, log logrus.FieldLogger) {
	for {
		wait := min(recheck, period) // the authority may not answer yet
		if status, err := brief(ctx); err == nil {
			wait = period
			if err := status.CheckInForce(now()); err != nil {
				log.WithError(err).WithFields(logrus.Fields{"ca": status.Subject, "not_before": status.NotBefore, "not_after": status.NotAfter}).
					Error("no certificate of this CA is valid now, and none can be issued")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// recheck is the time between two checks of a Puppet Server that is not ready.
const recheck = 30 * time.Second

// checkServer checks Puppet Server until it has no problem, and logs each new problem once. It runs in the
// background, so espm starts even if the server is down.
func (d *daemon) checkServer(ctx context.Context, authority *puppetserver.Authority, url string) {
	var logged []string
	for {
		version, problems := authority.Probe(ctx)
		if ctx.Err() != nil {
			return
		}
		log := d.log.WithFields(logrus.Fields{"url": url, "version": version})
		if len(problems) == 0 {
			log.Info("the authority is ready")
			return
		}
		var found []string
		for _, problem := range problems {
			found = append(found, problem.Error())
			if !slices.Contains(logged, problem.Error()) {
				log.WithError(problem).Error("the authority is not ready")
			}
		}
		logged = found
		select {
		case <-ctx.Done():
			return
		case <-time.After(recheck):
		}
	}
}
