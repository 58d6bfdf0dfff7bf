// Package daemon builds espm from its parts and serves. It chooses
// the store's engine and the authority.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/clock"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/enc/encsock"
	"github.com/espm-project/espm/internal/metrics"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/rpc"
	"github.com/espm-project/espm/internal/secretfile"
	"github.com/espm-project/espm/internal/site"
	"github.com/espm-project/espm/internal/snapshot"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// Run serves until ctx is done, and returns nil after an orderly stop.
//
// Run starts the parts in this order:
//  1. the store, which locks out other writers;
//  2. the ENC socket, so that catalogs compile while the rest starts;
//  3. the store's migration, if a new version needs one;
//  4. the authority, which continues unfinished issues and revocations;
//  5. the API.
func Run(ctx context.Context, c config.Config, logs io.Writer) (err error) {
	if err := forbidCoreDumps(); err != nil {
		return err
	}
	log := newLog(c.Log, logs)
	limitMemory(c.Memory, log)
	d := &daemon{config: c, log: log, supervisor: supervisor{log}, metrics: metrics.New(seriesLabels())}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	return bounded(ctx, stopWithin, func() error {
		err := d.serve(ctx, stop)
		stop(err)
		return errors.Join(err, d.close())
	})
}

// serve starts the parts and serves until ctx is done. A part that fails later calls stop.
func (d *daemon) serve(ctx context.Context, stop context.CancelCauseFunc) error {
	d.hangup()
	if err := d.openStore(ctx); err != nil {
		return err
	}
	d.runAudit(ctx)
	d.countSightings(ctx)
	if err := d.serveENC(ctx, stop); err != nil {
		return err
	}
	if err := d.migrate(ctx); err != nil {
		return err
	}
	if err := d.openAuthority(ctx); err != nil {
		return err
	}
	if err := d.serveMetrics(ctx, stop); err != nil {
		return err
	}
	if err := d.serveAPI(ctx, stop); err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

type daemon struct {
	config     config.Config
	log        *logrus.Logger
	supervisor supervisor
	engine     *bolt.Engine
	store      *store.Store
	sightings  *registry.Sightings
	audit      *audit.Log
	clock      *clock.Guard
	accepting  accepting
	registry   *registry.Registry
	metrics    *metrics.Metrics
	sources    metrics.Sources
	trust      atomic.Pointer[auth.Trust]  // nil: no network listener, or not yet
	access     *auth.Gate                  // nil until serveAPI
	tokens     atomic.Pointer[auth.Tokens] // nil: not read yet
	client     func() node.Credential      // the certificate that espm shows to Puppet Server; nil: espm is the CA
	kept       func() *auth.KeptCRL        // the CRL of espm's own CA; nil: it has none
	enc        *encsock.Server
	reloads    <-chan os.Signal
	backups    *snapshot.Maker
	wg         sync.WaitGroup
	closers    []func() error
}

// close stops the parts in the reverse order of their start. It first waits for the background work, which
// ends with the context of Run.
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
	setLog(log, c)
	return log
}

func setLog(log *logrus.Logger, c config.Log) {
	level, _ := logrus.ParseLevel(c.Level) // checked by config
	log.SetLevel(level)
	if c.Format == "json" {
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: time.RFC3339, DisableColors: true})
	}
}

// openStore refuses a store that other users can read, or a folder in which they can replace it.
func (d *daemon) openStore(ctx context.Context) error {
	path := d.config.Store.Path
	if err := errors.Join(
		secretfile.CheckMode("store", path, 0o007),
		secretfile.CheckMode("the store's folder", filepath.Dir(path), 0o002),
	); err != nil {
		return err
	}
	engine, err := bolt.Open(path, bolt.Options{Committed: d.metrics.Committed})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	d.closers = append(d.closers, engine.Close)
	if n, err := snapshot.RemoveStale(path); err != nil {
		d.log.WithError(err).Warn("can't remove temporary files of a killed backup")
	} else if n > 0 {
		d.log.WithFields(logrus.Fields{"store": path, "files": n}).Info("removed temporary files of a killed backup")
	}
	if err := giveGroup(path, d.config.ENC.Group, 0o640); err != nil {
		return fmt.Errorf("enc.group: %w", err)
	}
	d.engine = engine
	if d.store, err = store.Open(ctx, engine); err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	if d.clock, err = clock.New(ctx, d.store, time.Now, d.log); err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	d.backups = snapshot.NewMaker(d.config, engine)
	d.sources = metrics.Sources{Store: d.store, StoreBytes: engine.Size, Now: time.Now, Clock: d.clock.Check, Synchronized: clock.Synchronized, Credentials: d.credentials}
	return d.storeENC(ctx, d.config)
}

// storeENC stores the ENC's settings for espm-enc, which reads them while the
// daemon is down. It writes only changes, so that the daemon starts with a full disk.
func (d *daemon) storeENC(ctx context.Context, c config.Config) error {
	want := site.ENCSettings(c)
	if have, err := d.store.ENC(ctx); err == nil && have == want {
		return nil
	}
	return d.store.SetENC(ctx, want)
}

// runAudit seals audit lines, the last time when no other part can add any.
func (d *daemon) runAudit(ctx context.Context) {
	d.audit = audit.New(d.store, audit.Options{
		Keep: time.Duration(d.config.Audit.Keep), MaxBytes: int64(d.config.Audit.MaxSizeMiB) << 20, Now: time.Now, Clock: d.clock.Check, Log: d.log,
	})
	d.untilClosed(ctx, d.audit.Run)
}

// untilClosed runs a function in the background until close stops it, in its turn.
func (d *daemon) untilClosed(ctx context.Context, run func(context.Context)) {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run(running)
	}()
	d.closers = append(d.closers, func() error {
		stop()
		<-ended
		return nil
	})
}

// countSightings stores when each node was last classified, the last time after the
// ENC socket is closed.
func (d *daemon) countSightings(ctx context.Context) {
	d.sightings = registry.NewSightings(d.store, registry.SeenInStore(d.store), time.Now, d.log)
	d.untilClosed(ctx, d.sightings.Run)
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
		Answered:  d.metrics.Answered,
	}
	d.enc = server
	// It serves while the API drains, as espm-enc can't open the store yet.
	d.untilClosed(ctx, func(serving context.Context) {
		if err := server.Serve(serving, l); err != nil {
			cancel(err)
		}
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
		return nil
	})
	queue := revoke.New(d.store, refusing{authority, &d.trust}, time.Now, d.log)
	d.registry = registry.New(registry.Options{
		Store:       d.store,
		Authority:   authority,
		Signed:      authority,
		Keys:        pool,
		Revocations: queue,
		Puppet:      server,
		Algorithm:   alg,
		Protected:   d.config.Protected,
		Principals:  principals(d.config),
		Served:      d.served,
		TTL:         time.Duration(d.config.Issue.TTL),
		Now:         time.Now,
		Clock:       d.clock.Check,
		Log:         d.log,
		Sightings:   d.sightings,
		RunInterval: time.Duration(d.config.Puppet.RunInterval),
		Stage:       d.metrics.Stage,
	})
	d.closers = append(d.closers, func() error {
		d.registry.Wait()
		return nil
	})
	d.sources.Brief = func(ctx context.Context) (ca.Status, error) { return ca.Brief(ctx, authority) }
	d.sources.Down, d.sources.Keys = queue.Down, pool.Stats
	d.accepting = accepting{d.clock, queue.Kick}
	d.wg.Go(func() { d.clock.Run(ctx) })
	d.wg.Go(func() { queue.Run(ctx) })
	d.wg.Go(func() { logEnding(ctx, d.credentials, time.Now, logEndingAgain, d.log) })
	d.wg.Go(func() { logNotInForce(ctx, d.sources.Brief, time.Now, logAgain, d.log) })
	d.wg.Go(func() { d.registry.Run(ctx) })
	return nil
}

// puppetServer returns the Puppet Server that provisioned nodes are to use.
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

func (d *daemon) serveAPI(ctx context.Context, stop context.CancelCauseFunc) error {
	gate, tokens, err := d.gate(ctx)
	if err != nil {
		return err
	}
	d.wg.Go(func() { d.reload(ctx) })
	local, err := listen(strings.TrimPrefix(d.config.Listen, "unix://"), adminGroup(d.config))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := rpc.NewServer(ctx, rpc.Options{
		Registry: d.registry, Gate: gate, Tokens: tokens, Audit: d.audit, Backups: d.backups, Clock: d.accepting,
		Limits: limits(d.config), Now: time.Now, Log: d.log, GRPC: []grpc.ServerOption{d.metrics.Requests()},
	})
	network, err := d.serveOn(server, local, limits(d.config), stop)
	if err != nil {
		return err
	}
	fields := logrus.Fields{"listen": d.config.Listen, "enc": d.config.ENC.Socket, "store": d.config.Store.Path}
	if network != nil {
		fields["network"] = network.String()
	}
	d.log.WithFields(fields).Info("espm serves")
	d.supervisor.tell(sd.SdNotifyReady)
	d.wg.Go(func() { d.supervisor.alive(ctx, d.store.Answers) })
	<-ctx.Done()
	d.log.Info("espm stops")
	d.supervisor.tell(sd.SdNotifyStopping)
	return server.Shutdown(drain, cut)
}
