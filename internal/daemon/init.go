package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// InitOptions say what Init makes.
type InitOptions struct {
	Dir          string // "": the system's folders
	Certname     string // of the Puppet Server
	CAKey        string // "": RSA-4096
	Intermediate bool
}

// Initialized tells what Init made and what stood already.
type Initialized struct {
	Steps  []Step
	Config string // the configuration file
	Listen string // where the daemon will listen; "" if Init did not come to its end
	ENC    string // where espm-enc will ask
	Store  string // the store's file
}

// Step is one thing that Init made or found.
type Step struct {
	What, Path string
	Stood      bool
}

var configTemplate = template.Must(template.New("espm.yaml").Parse(`# Configuration of espm. A relative path is relative to this file's folder.
store:
  path: {{.Store}}
listen: unix://{{.Run}}/espm.sock
enc:
  socket: {{.Run}}/enc.sock
  # Group of Puppet Server's user, which runs espm-enc: it may use the socket and read the store.
  # group: puppet
  # What to do about nodes that espm does not know: fail, empty (only site.pp applies) or command.
  unknown_nodes: fail
authority:
  directory:
    path: {{.CA}}
    # Further files that get the CRL, such as Puppet Server's hostcrl.
    publish: []
puppet:
  # What provisioned nodes are told to use.
  server: {{.Server}}
  port: 8140
# Certificates that are never revoked.
protected_certnames:
  - {{.Server}}
`))

type layout struct{ Config, Store, CA, Run, Server string }

func (o InitOptions) layout() layout {
	if o.Dir == "" {
		return layout{config.DefaultFile, "/var/lib/espm/espm.db", "/var/lib/espm/ca", "/run/espm", o.Certname}
	}
	return layout{filepath.Join(o.Dir, "espm.yaml"), "espm.db", "ca", "run", o.Certname}
}

// Init makes a configuration, the folders that it names, an empty store and
// a new CA. What stands already is kept: a second call completes what the first did not.
func Init(o InitOptions) (Initialized, error) {
	if _, err := node.ParseCertname(o.Certname); err != nil {
		return Initialized{}, err
	}
	allowed := append(slices.Clone(ca.KeyAlgorithms()), directory.CAKeyECP384, "")
	if !slices.Contains(allowed, ca.KeyAlgorithm(o.CAKey)) {
		return Initialized{}, fmt.Errorf("--ca-key: rsa-4096, rsa-3072, rsa-2048, ec-p256 or ec-p384, is %q", o.CAKey)
	}
	l := o.layout()
	if abs, err := filepath.Abs(l.Config); err == nil {
		l.Config = abs
	}
	done := Initialized{Config: l.Config}
	stood := exists(l.Config)
	if !stood {
		var b bytes.Buffer
		if err := configTemplate.Execute(&b, l); err != nil {
			return done, err
		}
		if err := os.MkdirAll(filepath.Dir(l.Config), 0o755); err != nil {
			return done, err
		}
		if err := durable.OS.WriteFile(l.Config, b.Bytes(), 0o644); err != nil {
			return done, err
		}
	}
	done.Steps = append(done.Steps, Step{"configuration", l.Config, stood})
	// From here on what the file says counts, also if it stood already.
	c, err := config.Load(l.Config)
	if err != nil && !stood { // such as a --dir too long for a socket's path: leave nothing to stumble over
		return Initialized{}, errors.Join(err, os.Remove(l.Config))
	}
	if err != nil {
		return done, err
	}
	steps := []func() (Step, error){func() (Step, error) { return initStore(c) }}
	if c.Authority.Directory != nil { // else Puppet Server has the CA
		steps = append(steps, func() (Step, error) { return initCA(c, o) })
	}
	for _, make := range steps {
		step, err := make()
		if err != nil {
			return done, err
		}
		done.Steps = append(done.Steps, step)
	}
	for _, socket := range []string{strings.TrimPrefix(c.Listen, "unix://"), c.ENC.Socket} {
		if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
			return done, err
		}
	}
	done.Listen, done.ENC, done.Store = c.Listen, c.ENC.Socket, c.Store.Path
	return done, nil
}

func initStore(c config.Config) (Step, error) {
	step := Step{"store", c.Store.Path, exists(c.Store.Path)}
	if step.Stood {
		return step, nil
	}
	if err := os.MkdirAll(filepath.Dir(c.Store.Path), 0o755); err != nil {
		return step, err
	}
	engine, err := bolt.Open(c.Store.Path, bolt.Options{})
	if err != nil {
		return step, err
	}
	s, err := store.New(context.Background(), engine)
	if err == nil {
		err = s.SetENC(context.Background(), encSettings(c))
	}
	return step, errors.Join(err, engine.Close())
}

func encSettings(c config.Config) store.ENCSettings {
	return store.ENCSettings{UnknownNodes: c.ENC.UnknownNodes, Command: c.ENC.Command}
}

func initCA(c config.Config, o InitOptions) (Step, error) {
	path := c.Authority.Directory.Path
	step := Step{"CA", path, exists(filepath.Join(path, "ca_crt.pem"))}
	if step.Stood {
		return step, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return step, err
	}
	// Puppet's name for a CA, as far as a common name goes (RFC 5280 ub-common-name).
	name := "Puppet CA: " + o.Certname
	return step, directory.Create(path, directory.CreateOptions{
		Name:         name[:min(len(name), 64)],
		Key:          ca.KeyAlgorithm(o.CAKey),
		Intermediate: o.Intermediate,
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
