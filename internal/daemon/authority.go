package daemon

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/config"
)

// authority opens what signs and revokes.
func (d *daemon) authority(ctx context.Context) (ca.Authority, error) {
	if dir := d.config.Authority.Directory; dir != nil {
		authority, err := directory.Open(dir.Path, directory.Options{Publish: dir.Publish, TTL: d.config.Issue.TTL, Log: d.log})
		if err != nil {
			return nil, err
		}
		d.closers = append(d.closers, authority.Close)
		return authority, nil
	}
	server, err := fromPuppet(ctx, *d.config.Authority.PuppetServer)
	if err != nil {
		return nil, err
	}
	pending, err := d.store.Pending(ctx, "", 1)
	if err != nil {
		return nil, err
	}
	authority, err := puppetserver.New(puppetserver.Options{
		URL: server.URL, Certificate: server.Certificate, Key: server.Key, CA: server.CA, TTL: d.config.Issue.TTL, Log: d.log,
		Interrupted: len(pending) > 0,
	})
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, authority.Close)
	d.wg.Go(func() { d.checkServer(ctx, authority, server.URL) })
	return authority, nil
}

// checkServer says in the log what the server lacks. It does not hold up the
// start: a server that is down now is asked again when it is needed.
func (d *daemon) checkServer(ctx context.Context, authority *puppetserver.Authority, url string) {
	version, problems := authority.Probe(ctx)
	if ctx.Err() != nil {
		return
	}
	log := d.log.WithFields(logrus.Fields{"url": url, "version": version})
	for _, problem := range problems {
		log.WithError(problem).Error("the authority is not ready")
	}
	if len(problems) == 0 {
		log.Info("the authority is ready")
	}
}

// fromPuppet fills in the files that are not set: those of Puppet Server on this host.
func fromPuppet(ctx context.Context, p config.PuppetServer) (config.PuppetServer, error) {
	for setting, file := range map[string]*string{"hostcert": &p.Certificate, "hostprivkey": &p.Key, "localcacert": &p.CA} {
		if *file != "" {
			continue
		}
		path, err := puppetSetting(ctx, setting)
		if err != nil {
			return p, fmt.Errorf("authority.puppetserver: certificate, key and ca are not all set, and Puppet on this host was asked in vain: %w", err)
		}
		*file = path
	}
	return p, nil
}

func puppetSetting(ctx context.Context, setting string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	args := []string{"config", "print", setting, "--section", "server"}
	out, err := exec.CommandContext(ctx, "puppet", args...).Output()
	if err != nil {
		return "", fmt.Errorf("puppet %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
