// Package daemon puts espm together from its parts and runs it. It alone
// names the store's engine and the authority.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/enc/encsock"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/rpc"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// drain is how long calls under way may take when the daemon stops.
const drain = 10 * time.Second

// Run serves until ctx is done, and returns nil after an orderly stop.
//
// The order of the start: the store, so that nobody else can write it; the
// ENC socket, so that catalogs compile while the rest starts; the authority,
// with what an earlier run left open; the API, last.
func Run(ctx context.Context, c config.Config, logs io.Writer) (err error) {
	log := newLog(c.Log, logs)
	d := &daemon{config: c, log: log}
	defer func() { err = errors.Join(err, d.close()) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := d.openStore(ctx); err != nil {
		return err
	}
	d.countSightings(ctx)
	if err := d.serveENC(ctx, cancel); err != nil {
		return err
	}
	if err := d.openAuthority(ctx); err != nil {
		return err
	}
	if err := d.serveAPI(ctx); err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

type daemon struct {
	config    config.Config
	log       *logrus.Logger
	store     *store.Store
	sightings *registry.Sightings
	registry  *registry.Registry
	wg        sync.WaitGroup
	closers   []func() error
}

// close stops the parts in the reverse of the order they were started in. What
// runs in the background has ended by itself, with the context of Run.
func (d *daemon) close() error {
	d.wg.Wait()
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	return errors.Join(errs...)
}

func newLog(c config.Log, w io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	level, _ := logrus.ParseLevel(c.Level) // checked by config
	log.SetLevel(level)
	if c.Format == "json" {
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: time.RFC3339, DisableColors: true})
	}
	return log
}

func (d *daemon) openStore(ctx context.Context) error {
	engine, err := bolt.Open(d.config.Store.Path, bolt.Options{})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	d.closers = append(d.closers, engine.Close)
	if err := giveGroup(d.config.Store.Path, d.config.ENC.Group, 0o640); err != nil {
		return err
	}
	if d.store, err = store.New(ctx, engine); err != nil {
		return fmt.Errorf("store %s: %w", d.config.Store.Path, err)
	}
	return d.keepENC(ctx)
}

// keepENC writes the ENC's settings where espm-enc finds them while the
// daemon is down. Not needlessly: with a full disk the daemon would not start.
func (d *daemon) keepENC(ctx context.Context) error {
	want := encSettings(d.config)
	if have, err := d.store.ENC(ctx); err == nil && have == want {
		return nil
	}
	return d.store.SetENC(ctx, want)
}

// countSightings stores when nodes were last seen; for the last time after the
// ENC socket is closed.
func (d *daemon) countSightings(ctx context.Context) {
	d.sightings = registry.NewSightings(d.store, time.Now, d.log)
	counting, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.sightings.Run(counting)
	}()
	d.closers = append(d.closers, func() error {
		stop()
		<-ended
		return nil
	})
}

func (d *daemon) serveENC(ctx context.Context, cancel context.CancelCauseFunc) error {
	l, err := listen(d.config.ENC.Socket, d.config.ENC.Group)
	if err != nil {
		return fmt.Errorf("enc.socket: %w", err)
	}
	server := &encsock.Server{
		Source:    d.store,
		Unknown:   enc.Unknown{Policy: d.config.ENC.UnknownNodes, Command: d.config.ENC.Command},
		Sightings: d.sightings,
		Log:       d.log,
	}
	// It serves on while the API drains, as nobody else can read the store then.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(serving, l); err != nil {
			cancel(err)
		}
	}()
	d.closers = append(d.closers, func() error {
		stop()
		<-ended
		return nil
	})
	return nil
}

func (d *daemon) openAuthority(ctx context.Context) error {
	authority, err := d.authority(ctx)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	alg, err := ca.ParseKeyAlgorithm(d.config.Issue.KeyAlgorithm)
	if err != nil {
		return err
	}
	server, err := puppetServer(d.config.Puppet)
	if err != nil {
		return err
	}
	pool := ca.NewPool(ctx, *d.config.Issue.KeyPool, alg)
	d.closers = append(d.closers, func() error {
		pool.Close()
		d.log.WithField("keys", pool.String()).Info("key pool closed")
		return nil
	})
	queue := revoke.New(d.store, authority, time.Now, d.log)
	d.registry = registry.New(registry.Options{
		Store:       d.store,
		Authority:   authority,
		Signed:      authority,
		Keys:        pool,
		Revocations: queue,
		Puppet:      server,
		Algorithm:   alg,
		Protected:   d.config.Protected,
		Now:         time.Now,
		Log:         d.log,
		Sightings:   d.sightings,
		RunInterval: d.config.Puppet.RunInterval,
	})
	d.closers = append(d.closers, func() error {
		d.registry.Wait()
		return nil
	})
	d.wg.Go(func() { queue.Run(ctx) })
	d.wg.Go(func() { d.registry.Run(ctx) })
	return nil
}

// puppetServer is what provisioned nodes are told to use.
func puppetServer(c config.Puppet) (bootstrap.Server, error) {
	server := bootstrap.Server{Name: c.Server, Port: c.Port, CAServer: c.CAServer}
	if c.Template == "" {
		return server, nil
	}
	text, err := os.ReadFile(c.Template)
	if err == nil {
		err = bootstrap.CheckTemplate(string(text))
	}
	if err != nil {
		return server, fmt.Errorf("puppet.conf_template: %s: %w", c.Template, err)
	}
	server.Template = string(text)
	return server, nil
}

func (d *daemon) serveAPI(ctx context.Context) error {
	path := strings.TrimPrefix(d.config.Listen, "unix://")
	l, err := listen(path, "")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := rpc.NewServer(ctx, d.registry, time.Now, d.log)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	d.log.WithFields(logrus.Fields{"listen": d.config.Listen, "enc": d.config.ENC.Socket, "store": d.config.Store.Path}).Info("espm serves")
	select {
	case err := <-served:
		return fmt.Errorf("listen: %w", err)
	case <-ctx.Done():
	}
	d.log.Info("espm stops")
	stopped := make(chan struct{})
	go func() { server.GracefulStop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(drain):
		server.Stop()
	}
	<-served
	return nil
}
