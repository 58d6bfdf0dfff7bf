// Package site knows the host that espm is on: what Puppet there says of itself, the authority that
// a configuration names, and what files and groups there are. The daemon and the operator's work
// without it (setup, snapshot) share it.
package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/espm-project/espm/internal/config"
)

// vendorPuppet is where the vendor's packages have it, which is in few a service's PATH.
const vendorPuppet = "/opt/puppetlabs/bin/puppet"

var ErrNoPuppet = errors.New("there is no command puppet on this host, in PATH or as " + vendorPuppet)

// Settings asks Puppet on this host for settings of its server. It
// starts a Ruby, which takes seconds: ask for all at once, and for two at least, as
// the answer to one has another form.
func Settings(ctx context.Context, names ...string) (map[string]string, error) {
	puppet, err := exec.LookPath("puppet")
	if err != nil {
		if puppet, err = exec.LookPath(vendorPuppet); err != nil {
			return nil, ErrNoPuppet
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("no answer within 30 seconds"))
	defer cancel()
	args := append(append([]string{"config", "print"}, names...), "--section", "server", "--color=false")
	said := "puppet " + strings.Join(args, " ")
	cmd := exec.CommandContext(ctx, puppet, args...) // #nosec G204 -- no shell, and nothing of a caller in it
	cmd.WaitDelay = time.Second                      // what it started may keep the output open
	out, err := cmd.Output()
	if cause := context.Cause(ctx); cause != nil {
		return nil, fmt.Errorf("%s: %w", said, cause)
	}
	if failed, ok := errors.AsType[*exec.ExitError](err); ok && len(failed.Stderr) > 0 {
		line, _, _ := strings.Cut(strings.TrimSpace(string(failed.Stderr)), "\n")
		return nil, fmt.Errorf("%s: %w: %s", said, err, line)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", said, err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if name, value, ok := strings.Cut(line, " = "); ok {
			settings[name] = strings.TrimSpace(value)
		}
	}
	for _, name := range names {
		if _, ok := settings[name]; !ok {
			return nil, fmt.Errorf("%s: it does not tell %s", said, name)
		}
	}
	return settings, nil
}

// Identity are the settings that say who Puppet Server on this host is, and whom it trusts.
var Identity = []string{"hostcert", "hostprivkey", "localcacert"}

// FromPuppet fills in the files that are not set: those of Puppet Server on this host.
func FromPuppet(ctx context.Context, p config.PuppetServer) (config.PuppetServer, error) {
	if p.Certificate != "" && p.CA != "" { // and then the key, too
		return p, nil
	}
	settings, err := Settings(ctx, Identity...)
	if err != nil {
		return p, fmt.Errorf("authority.puppetserver: certificate, key and ca are not all set, and Puppet on this host was asked in vain: %w", err)
	}
	return WithIdentity(p, settings), nil
}

func WithIdentity(p config.PuppetServer, settings map[string]string) config.PuppetServer {
	if p.Certificate == "" {
		p.Certificate, p.Key = settings["hostcert"], settings["hostprivkey"]
	}
	if p.CA == "" {
		p.CA = settings["localcacert"]
	}
	return p
}

// FoundBy adds to an error where the files come from that it is about.
func FoundBy(set config.PuppetServer, err error) error {
	if err == nil || set.Certificate != "" && set.CA != "" {
		return err
	}
	err = fmt.Errorf("%w; what is not set is as puppet config print %s --section server says", err, strings.Join(Identity, " "))
	if os.Geteuid() != 0 {
		err = fmt.Errorf("%w, which tells others than root their own: run espm as root, or set certificate, key and ca in authority.puppetserver", err)
	}
	return err
}

// Files returns the certificate, the key and the CA of Puppet on this host, to call with.
func Files(ctx context.Context) (config.PuppetServer, error) {
	settings, err := Settings(ctx, Identity...)
	return WithIdentity(config.PuppetServer{}, settings), err
}
