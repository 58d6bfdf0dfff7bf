package daemon

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc"
)

// hangup catches SIGHUP, which would otherwise end the process. A SIGHUP during the start
// causes a reload after it.
func (d *daemon) hangup() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	d.closers = append(d.closers, func() error { signal.Stop(signals); return nil })
	d.reloads = signals
}

// reload reads the configuration again at each SIGHUP, until ctx is done.
func (d *daemon) reload(ctx context.Context) {
	running := d.config
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.reloads:
		}
		err := d.reread(ctx, &running)
		d.metrics.Reloaded(err == nil)
		if err != nil {
			d.log.WithError(err).Error("the configuration is refused; what it was before holds, in all")
		}
	}
}

// part is a group of settings that a reload applies, and the function that applies them.
type part struct {
	settings []string
	apply    func(ctx context.Context, d *daemon, c config.Config) error
}

// Only the first may fail, so that a reload applies all changes or none.
var parts = []part{
	{[]string{"enc.unknown_nodes", "enc.command"}, func(ctx context.Context, d *daemon, c config.Config) error {
		if err := d.storeENC(ctx, c); err != nil { // first, as it may fail
			return err
		}
		d.enc.SetUnknown(enc.Unknown{Policy: c.ENC.UnknownNodes, Command: c.ENC.Command})
		return nil
	}},
	{[]string{"protected_certnames"}, func(_ context.Context, d *daemon, c config.Config) error {
		d.registry.SetProtected(c.Protected)
		return nil
	}},
	{[]string{"principals"}, func(ctx context.Context, d *daemon, c config.Config) error {
		listed, _ := c.Access() // config.Load has checked it
		d.registry.SetPrincipals(principals(c))
		d.access.SetPrincipals(listed)
		if err := d.reviewGrants(ctx, c); err != nil {
			d.log.WithError(err).Warn("whether a grant gives more than it should is not known")
		}
		return nil
	}},
	{[]string{"log.level", "log.format"}, func(_ context.Context, d *daemon, c config.Config) error {
		setLog(d.log, c.Log)
		return nil
	}},
}

// reread applies the changes of the configuration. After an error, nothing has changed.
func (d *daemon) reread(ctx context.Context, running *config.Config) error {
	if running.File == "" {
		return errors.New("it came from no file")
	}
	fresh, err := config.Load(running.File)
	if err != nil {
		return err
	}
	changed := config.Diff(*running, fresh)
	log := d.log.WithField("file", fresh.File)
	for _, p := range parts {
		if !slices.ContainsFunc(p.settings, func(s string) bool { return slices.Contains(changed, s) }) {
			continue
		}
		if err := p.apply(ctx, d, fresh); err != nil {
			return err
		}
	}
	*running = mix(*running, fresh)
	for _, setting := range changed {
		if slices.ContainsFunc(parts, func(p part) bool { return slices.Contains(p.settings, setting) }) {
			log.WithField("setting", setting).Info("the setting has changed, and takes effect from now on")
		} else {
			log.WithField("setting", setting).Warn("the setting is changed in the file, and takes effect when espm is restarted")
		}
	}
	log.WithField("changed", len(changed)).Info("the configuration was read again")
	return nil
}

// mix returns the running configuration with the settings of the file that a reload can apply. The
// log names the others at every reload until espm is restarted.
func mix(running, fresh config.Config) config.Config {
	running.ENC.UnknownNodes, running.ENC.Command = fresh.ENC.UnknownNodes, fresh.ENC.Command
	running.Protected, running.Principals, running.Log = fresh.Protected, fresh.Principals, fresh.Log
	return running
}
