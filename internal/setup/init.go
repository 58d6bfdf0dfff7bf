// Package setup does the operator's work on a host without the daemon. Init makes the files that espm needs, Apply changes
// Puppet Server's configuration, and Examine answers the doctor's questions.
package setup

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/ca/pkcs11"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/site"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// InitOptions configure Init.
type InitOptions struct {
	Puppet   *PuppetHost // gives the settings that are not set; not used with Dir and a CA of espm's
	Dir      string      // "": the system's folders
	Certname string      // of the Puppet Server; "" with PuppetServer: this host's certname, or the host in the URL

	// The CA that espm makes and owns, unless PuppetServer is set.
	CAKey        string // "": RSA-4096
	CAKeyURI     string // the key in a token, which Init makes if it is not there; "": a file
	Intermediate bool

	PuppetServer *config.PuppetServer // a server that keeps its CA; fields that are "" are set from this host's Puppet
	Unasked      bool                 // don't check whether that server allows espm's calls
}

// Initialized is the result of Init.
type Initialized struct {
	Steps    []Step
	Config   string // the configuration file
	Listen   string // the daemon's socket; "" after an error
	ENC      string // the ENC's socket
	Store    string // the store's file
	Certname string // of the Puppet Server

	PuppetServer *PuppetServer // nil: espm owns the CA
}

// Step is one file or folder that Init made or found.
type Step struct {
	What, Path string
	Stood      bool
}

var configTemplate = template.Must(template.New("espm.yaml").Funcs(template.FuncMap{"yaml": scalar}).Parse(
	`# Configuration of espm. A relative path is relative to this file's folder.
store:
  path: {{.Store}}
listen: unix://{{.Run}}/espm.sock
enc:
  socket: {{.Run}}/enc.sock
  # The group of Puppet Server's user, which runs espm-enc. It may use the socket and read the store.
  {{if .Group}}group: {{yaml .Group}}{{else}}# group: puppet{{end}}
  # The answer for a node that espm does not know: fail, empty (only site.pp applies) or command (another ENC).
  unknown_nodes: {{.Unknown}}
{{- with .Command}}
  command: {{yaml .}}
{{- end}}
authority:
{{- with .PuppetServer}}
  # This Puppet Server keeps its CA.
  puppetserver:
    url: {{yaml .URL}}
    certificate: {{yaml .Certificate}}
    key: {{yaml .Key}}
    ca: {{yaml .CA}}
{{- else}}
  directory:
    path: {{.CA}}
{{- with .Key}}
    # The token that holds the CA's key.
    key: {{yaml .}}
{{- end}}
    # Further files that get the CRL, such as Puppet Server's hostcrl.
    publish: []
{{- end}}
puppet:
  # The Puppet Server in the puppet.conf of provisioned nodes.
  server: {{.Server}}
  port: {{.Port}}
# Certnames that are never terminated or revoked.
protected_certnames:
{{- range .Protected}}
  - {{.}}
{{- end}}
`))

// scalar encodes a string as YAML.
func scalar(s string) (string, error) {
	b, err := yaml.Marshal(s)
	return strings.TrimSpace(string(b)), err
}

// layout has the values for the configuration's template.
type layout struct {
	Config, Store, CA, Run string
	Key                    string // of the CA, in a token
	surroundings
}

func (o InitOptions) layout() layout {
	l := layout{config.DefaultFile, "/var/lib/espm/espm.db", "/var/lib/espm/ca", "/run/espm", o.CAKeyURI, surroundings{}}
	if o.Dir != "" {
		l = layout{filepath.Join(o.Dir, "espm.yaml"), "espm.db", "ca", "run", o.CAKeyURI, surroundings{}}
	}
	if abs, err := filepath.Abs(l.Config); err == nil {
		l.Config = abs
	}
	return l
}

// Init makes a configuration, the folders in it, an empty store and,
// unless Puppet Server keeps its CA, a new CA. It keeps existing files, so a second call
// completes the first. If Puppet Server does not answer, or refuses the client certificate, Init returns an
// error before it makes anything. Missing rules in auth.conf are no error.
func Init(ctx context.Context, o InitOptions) (Initialized, error) {
	if err := o.check(); err != nil {
		return Initialized{}, err
	}
	l := o.layout()
	done := Initialized{Config: l.Config}
	stood := site.Exists(l.Config)
	if !stood {
		var err error
		if l.surroundings, err = o.surroundings(); err != nil {
			return Initialized{}, err
		}
		if done.PuppetServer, err = o.ask(ctx, l.surroundings); err != nil {
			return Initialized{}, err
		}
		if err := writeConfig(l); err != nil {
			return done, err
		}
	}
	// From here on, the values are those of the file, which may be older than this call.
	c, err := config.Load(l.Config)
	if err != nil && !stood { // such as a --dir too long for a socket's path: leave nothing to stumble over
		return Initialized{}, errors.Join(err, os.Remove(l.Config))
	}
	done.Steps = append(done.Steps, Step{"configuration", l.Config, stood})
	if err != nil {
		return done, err
	}
	if o.PuppetServer != nil && c.Authority.PuppetServer == nil {
		return done, fmt.Errorf("%s has authority.directory, where espm is the CA: remove the file, or take another --dir; nothing was changed", l.Config)
	}
	if set := c.Authority.PuppetServer; stood && set != nil {
		filled, err := site.FromPuppet(ctx, *set)
		if err == nil {
			done.PuppetServer, err = o.ask(ctx, surroundings{PuppetServer: &filled, given: *set})
		}
		if err != nil {
			return done, err
		}
	}
	return done, o.make(ctx, c, &done)
}

func (o InitOptions) check() error {
	if o.Certname != "" || o.PuppetServer == nil {
		if _, err := node.ParseCertname(o.Certname); err != nil {
			return err
		}
	}
	allowed := append(slices.Clone(ca.KeyAlgorithms()), ca.ECP384, "")
	if !slices.Contains(allowed, ca.KeyAlgorithm(o.CAKey)) {
		return fmt.Errorf("--ca-key: rsa-4096, rsa-3072, rsa-2048, ec-p256 or ec-p384, is %q", o.CAKey)
	}
	if o.CAKeyURI == "" {
		return nil
	}
	if _, err := pkcs11.ParseURI(o.CAKeyURI); err != nil {
		return fmt.Errorf("--ca-key-uri: %w", err)
	}
	if !pkcs11.BuiltIn {
		return fmt.Errorf("--ca-key-uri: %w", pkcs11.ErrNotBuiltIn)
	}
	return nil
}

func writeConfig(l layout) error {
	var b bytes.Buffer
	if err := configTemplate.Execute(&b, l); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.Config), 0o755); err != nil {
		return err
	}
	return durable.OS.WriteFile(l.Config, b.Bytes(), 0o644)
}

// make makes the files and folders in the configuration.
func (o InitOptions) make(ctx context.Context, c config.Config, done *Initialized) error {
	steps := []func() (Step, error){func() (Step, error) { return initStore(ctx, c) }}
	if c.Authority.Directory != nil { // else Puppet Server has the CA
		steps = append(steps, func() (Step, error) { return initCA(c, o) })
	}
	for _, take := range steps {
		step, err := take()
		if err == nil && !step.Stood {
			err = handOver(step.Path)
		}
		if err != nil {
			return err
		}
		done.Steps = append(done.Steps, step)
	}
	for _, socket := range []string{strings.TrimPrefix(c.Listen, "unix://"), c.ENC.Socket} {
		if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
			return err
		}
	}
	done.Listen, done.ENC, done.Store, done.Certname = c.Listen, c.ENC.Socket, c.Store.Path, c.Puppet.Server
	return nil
}

func initStore(ctx context.Context, c config.Config) (Step, error) {
	step := Step{"store", c.Store.Path, site.Exists(c.Store.Path)}
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
	s, err := store.New(ctx, engine)
	if err == nil {
		err = s.SetENC(ctx, site.ENCSettings(c))
	}
	return step, errors.Join(err, engine.Close())
}

func initCA(c config.Config, o InitOptions) (Step, error) {
	path := c.Authority.Directory.Path
	step := Step{"CA", path, site.Exists(filepath.Join(path, "ca_crt.pem"))}
	if step.Stood {
		return step, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return step, err
	}
	// Puppet's name for a CA, as far as a common name goes (RFC 5280 ub-common-name).
	name := "Puppet CA: " + o.Certname
	options := directory.CreateOptions{
		Name:         name[:min(len(name), 64)],
		Key:          ca.KeyAlgorithm(o.CAKey),
		Intermediate: o.Intermediate,
	}
	if setting := c.Authority.Directory.Key; setting != "" {
		return step, createInToken(path, setting, options)
	}
	return step, directory.Create(path, options)
}

// createInToken creates a CA with a key in the token. It makes the key if it is not there.
func createInToken(path, setting string, o directory.CreateOptions) error {
	uri, err := pkcs11.ParseURI(setting)
	if err != nil {
		return fmt.Errorf("authority.directory.key: %w", err)
	}
	var key *pkcs11.Key
	o.NewKey = func(alg ca.KeyAlgorithm) (crypto.Signer, error) {
		var err error
		key, err = pkcs11.Generate(uri, alg)
		return key, err
	}
	err = directory.Create(path, o)
	if key != nil {
		err = errors.Join(err, key.Close())
	}
	return err
}

// handOver changes the owner of files that root made to the owner of their folder.
// The package makes /var/lib/espm for the daemon's user.
func handOver(path string) error {
	var folder unix.Stat_t
	if err := unix.Stat(filepath.Dir(path), &folder); err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	if os.Geteuid() != 0 || folder.Uid == 0 {
		return nil
	}
	return site.GiveTo(path, int(folder.Uid), int(folder.Gid))
}
