package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/rpc"
	"github.com/espm-project/espm/internal/site"
)

// defaultAdmins is the group whose members are admins if the configuration names none.
const defaultAdmins = "espm"

// gate puts together whom the API lets in, and the tokens.
func (d *daemon) gate(ctx context.Context) (*auth.Gate, *auth.Tokens, error) {
	o := auth.GateOptions{Limits: auth.NewLimits(time.Now), Refusals: d.audit, Now: time.Now, Log: d.log}
	var err error
	if o.Local, err = auth.NewLocal(adminGroup(d.config)); err != nil {
		return nil, nil, fmt.Errorf("admin_group: %w", err)
	}
	if o.Principals, err = d.config.Access(); err != nil {
		return nil, nil, err
	}
	if d.config.Network != nil {
		files, err := networkFiles(ctx, d.config)
		if err != nil {
			return nil, nil, err
		}
		files.Kept = d.kept
		trust, err := auth.NewTrust(files, time.Now, d.log)
		if err != nil {
			return nil, nil, fmt.Errorf("network: %w", err)
		}
		d.trust.Store(trust)
		o.Trust, o.Refused = trust, trust.Refused
		d.wg.Go(func() { trust.Run(ctx) })
	}
	if o.Tokens, err = auth.NewTokens(ctx, d.store, d.store, time.Now, d.log); err != nil {
		return nil, nil, err
	}
	d.tokens.Store(o.Tokens)
	d.wg.Go(func() { o.Tokens.Run(ctx) })
	d.access = auth.NewGate(o)
	return d.access, o.Tokens, d.reviewGrants(ctx, d.config)
}

// served returns the names of the network listener, which is not known before gate has run.
func (d *daemon) served() []string {
	if trust := d.trust.Load(); trust != nil {
		return trust.Names()
	}
	return nil
}

// refusing is an authority that reports revocations to the gate as soon as Revoke returns, before the receipt is stored.
type refusing struct {
	authority
	trust *atomic.Pointer[auth.Trust]
}

func (r refusing) Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	receipts, err := r.authority.Revoke(ctx, targets)
	if trust := r.trust.Load(); trust != nil {
		trust.Refresh()
	}
	return receipts, err
}

func adminGroup(c config.Config) string {
	if c.AdminGroup != "" {
		return c.AdminGroup
	}
	if _, err := user.LookupGroup(defaultAdmins); err != nil {
		return ""
	}
	return site.UsableGroup(defaultAdmins)
}

// networkFiles returns the network settings with all files set.
func networkFiles(ctx context.Context, c config.Config) (auth.Files, error) {
	set := *c.Network
	if dir := c.Authority.Directory; dir != nil && set.CA == "" {
		set.CA, set.CRL = filepath.Join(dir.Path, "ca_crt.pem"), filepath.Join(dir.Path, "ca_crl.pem")
	}
	if set.Certificate == "" || set.CA == "" {
		settings, err := site.Settings(ctx, append(site.Identity, "hostcrl")...)
		if err != nil {
			return auth.Files{}, fmt.Errorf("network: certificate, key, ca and crl are not all set, and Puppet on this host does not have them: %w", err)
		}
		if set.Certificate == "" {
			set.Certificate, set.Key = settings["hostcert"], settings["hostprivkey"]
		}
		if set.CA == "" {
			set.CA, set.CRL = settings["localcacert"], settings["hostcrl"]
		}
	}
	return auth.Files{Certificate: set.Certificate, Key: set.Key, CA: set.CA, CRL: set.CRL}, nil
}

// localConnections has a limit of its own, so that network clients can't lock out a local admin.
const localConnections = 1024

// serveOn serves on all listeners of the configuration. A listener that fails calls stop.
func (d *daemon) serveOn(server *rpc.Server, local net.Listener, limits rpc.Limits, stop context.CancelCauseFunc) (network net.Addr, err error) {
	listeners := []net.Listener{rpc.Listen(local, rpc.Limits{Connections: localConnections}, d.log)}
	if d.config.Network != nil {
		l, err := net.Listen("tcp", d.config.Network.Listen)
		if err != nil {
			return nil, fmt.Errorf("network.listen: %w", errors.Join(err, local.Close()))
		}
		network = l.Addr()
		listeners = append(listeners, rpc.Listen(l, limits, d.log))
	}
	for _, l := range listeners {
		// Not in d.wg: Serve waits for each call, and a call that ignores its end must not keep the store open.
		go func() {
			if err := server.Serve(l); err != nil {
				stop(fmt.Errorf("listen: %w", err))
			}
		}()
	}
	return network, nil
}

// limits returns the limits of the configuration, or else the defaults.
func limits(c config.Config) rpc.Limits {
	l := rpc.DefaultLimits
	if n := c.Network; n != nil {
		l.Connections, l.PerAddress = n.MaxConnections, n.MaxConnectionsPerAddress
	}
	return l
}
