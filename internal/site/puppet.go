// Package site reads the host: the settings of its Puppet, the authority of a
// configuration, files and groups. The daemon, setup and snapshot share it.
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

// vendorPuppet is the path in the vendor's packages. The PATH of a service seldom has it.
const vendorPuppet = "/opt/puppetlabs/bin/puppet"

var ErrNoPuppet = errors.New("there is no command puppet on this host, in PATH or as " + vendorPuppet)

// Settings asks this host's Puppet for settings of its server. That
// starts Ruby, which takes seconds: ask for all at once. Ask for at least two, as Puppet prints a
// single value in another form.
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
	cmd := exec.CommandContext(ctx, puppet, args...) // #nosec G204 -- no shell, and no input of a caller
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

// Identity are the settings with the files of this host's Puppet Server: certificate, key and CA.
var Identity = []string{"hostcert", "hostprivkey", "localcacert"}

// FromPuppet sets the files that are "" to those of this host's Puppet Server.
func FromPuppet(ctx context.Context, p config.PuppetServer) (config.PuppetServer, error) {
	if p.Certificate != "" && p.CA != "" { // and then the key, too
		return p, nil
	}
	settings, err := Settings(ctx, Identity...)
	if err != nil {
		return p, fmt.Errorf("authority.puppetserver: certificate, key and ca are not all set, and Puppet on this host does not have them: %w", err)
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

// FoundBy adds to an error that its files come from Puppet's settings.
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

// Files returns the paths of the certificate, the key and the CA of this host's Puppet.
func Files(ctx context.Context) (config.PuppetServer, error) {
	settings, err := Settings(ctx, Identity...)
	return WithIdentity(config.PuppetServer{}, settings), err
}
