// Package config reads espm's configuration, a YAML file. An unknown key is
// an error.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"go.yaml.in/yaml/v3"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/pkcs11"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
)

// The default paths. The package installs these files there.
const (
	DefaultFile   = "/etc/espm/espm.yaml"
	DefaultListen = "unix:///run/espm/espm.sock"
)

// Config is the whole configuration. docs/configuration.md describes each setting.
type Config struct {
	Store     Store     `yaml:"store"`
	Listen    string    `yaml:"listen"`
	ENC       ENC       `yaml:"enc"`
	Authority Authority `yaml:"authority"`
	Issue     Issue     `yaml:"certificates"`
	Puppet    Puppet    `yaml:"puppet"`
	Protected []string  `yaml:"protected_certnames"`
	Audit     Audit     `yaml:"audit"`
	Log       Log       `yaml:"log"`
	Metrics   Metrics   `yaml:"metrics"`
	Memory    Memory    `yaml:"memory_limit"` // 0: a quarter of what the machine or the cgroup has

	AdminGroup string      `yaml:"admin_group"`
	Network    *Network    `yaml:"network"`
	Principals []Principal `yaml:"principals"`

	File string `yaml:"-"` // where Load read it, absolute; "": it was made otherwise
}

// Store configures the store.
type Store struct {
	Path string `yaml:"path"`
}

// ENC configures the external node classifier, which Puppet Server asks.
type ENC struct {
	Socket       string `yaml:"socket"`
	Group        string `yaml:"group"`
	UnknownNodes string `yaml:"unknown_nodes"`
	Command      string `yaml:"command"`
}

// Authority configures the authority that signs and revokes. Exactly one kind is set.
type Authority struct {
	Directory    *Directory    `yaml:"directory"`
	PuppetServer *PuppetServer `yaml:"puppetserver"`
}

// PuppetServer is a running Puppet Server that keeps its CA. Files that are ""
// are those of this host's Puppet.
type PuppetServer struct {
	URL         string `yaml:"url"`
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
}

// Directory is a Puppet CA directory that espm owns.
type Directory struct {
	Path    string   `yaml:"path"`
	Key     string   `yaml:"key"`
	Publish []string `yaml:"publish"`
	CRL     CRL      `yaml:"crl"`
}

// CRL configures the CRL of the directory.
type CRL struct {
	Validity    Duration `yaml:"validity"`
	KeepExpired Duration `yaml:"keep_expired"`
}

// Issue has the defaults of certificates.
type Issue struct {
	TTL          Duration `yaml:"ttl"`
	KeyAlgorithm string   `yaml:"key_algorithm"`
	KeyPool      *int     `yaml:"key_pool"`
}

// Puppet is the server that provisioned nodes are to use.
type Puppet struct {
	Server      string   `yaml:"server"`
	Port        int      `yaml:"port"`
	CAServer    string   `yaml:"ca_server"`
	Template    string   `yaml:"conf_template"`
	RunInterval Duration `yaml:"run_interval"`
}

// Audit limits the age and size of the audit log.
type Audit struct {
	Keep       Duration `yaml:"keep"`
	MaxSizeMiB int      `yaml:"max_size_mib"`
}

// Log configures the log.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Metrics configures the listener for metrics and health.
type Metrics struct {
	Listen string `yaml:"listen"` // "": nowhere
}

const defaultKeyPool = 4

// Load reads and checks a configuration file and fills in the defaults.
// Relative paths in it are relative to its folder.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := parse(data, filepath.Dir(abs))
	if err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	c.File = abs
	return c, nil
}

func parse(data []byte, dir string) (Config, error) {
	var c Config
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, err
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return c, errors.New("must be one YAML document")
	}
	c.fill(dir)
	return c, c.check()
}

func (c *Config) fill(dir string) {
	c.Listen = cmp.Or(c.Listen, DefaultListen)
	c.Store.Path = cmp.Or(c.Store.Path, "/var/lib/espm/espm.db")
	c.ENC.Socket = cmp.Or(c.ENC.Socket, "/run/espm/enc.sock")
	c.ENC.UnknownNodes = cmp.Or(c.ENC.UnknownNodes, enc.Fail)
	c.Issue.KeyAlgorithm = cmp.Or(c.Issue.KeyAlgorithm, string(ca.ECP256))
	if c.Issue.KeyPool == nil {
		c.Issue.KeyPool = new(defaultKeyPool)
	}
	c.Puppet.Port = cmp.Or(c.Puppet.Port, 8140)
	c.Puppet.RunInterval = cmp.Or(c.Puppet.RunInterval, Duration(30*time.Minute))
	c.Audit.Keep = cmp.Or(c.Audit.Keep, Duration(365*24*time.Hour))
	c.Audit.MaxSizeMiB = cmp.Or(c.Audit.MaxSizeMiB, 1024)
	c.Log.Level = cmp.Or(c.Log.Level, "info")
	c.Log.Format = cmp.Or(c.Log.Format, "text")

	absolute(dir, &c.Store.Path)
	absolute(dir, &c.ENC.Socket)
	if c.Puppet.Template != "" {
		absolute(dir, &c.Puppet.Template)
	}
	if d := c.Authority.Directory; d != nil {
		if d.Path != "" {
			absolute(dir, &d.Path)
		}
		for i := range d.Publish {
			if d.Publish[i] != "" {
				absolute(dir, &d.Publish[i])
			}
		}
	}
	if p := c.Authority.PuppetServer; p != nil {
		for _, file := range []*string{&p.Certificate, &p.Key, &p.CA} {
			if *file != "" {
				absolute(dir, file)
			}
		}
	}
	if c.Network != nil {
		c.Network.fill(dir)
	}
	if path, ok := strings.CutPrefix(c.Listen, "unix://"); ok && path != "" {
		absolute(dir, &path)
		c.Listen = "unix://" + path
	}
}

func absolute(dir string, path *string) {
	if !filepath.IsAbs(*path) {
		*path = filepath.Join(dir, *path)
	}
}

// check names the setting and the rule it breaks.
func (c *Config) check() error {
	if err := c.checkListen(); err != nil {
		return err
	}
	if err := c.checkAccess(); err != nil {
		return err
	}
	if err := c.Authority.check(); err != nil {
		return err
	}
	if err := c.checkENC(); err != nil {
		return err
	}
	if err := errors.Join(c.Metrics.check(), c.Memory.check()); err != nil {
		return err
	}
	if _, err := ca.ParseKeyAlgorithm(c.Issue.KeyAlgorithm); err != nil {
		return fmt.Errorf("certificates.%w", err)
	}
	if err := within("certificates.ttl", c.Issue.TTL, ca.MinTTL, ca.MaxTTL); err != nil && c.Issue.TTL != 0 {
		return err
	}
	if pool := *c.Issue.KeyPool; pool < 0 || pool > 1000 {
		return fmt.Errorf("certificates.key_pool: from 0 to 1000 keys, is %d", pool)
	}
	if err := c.Puppet.check(); err != nil {
		return err
	}
	for i, name := range c.Protected {
		if _, err := node.ParseCertname(name); err != nil {
			return fmt.Errorf("protected_certnames[%d]: %w", i, err)
		}
	}
	if err := c.Audit.check(); err != nil {
		return err
	}
	if _, err := logrus.ParseLevel(c.Log.Level); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	if !slices.Contains([]string{"text", "json"}, c.Log.Format) {
		return fmt.Errorf("log.format: text or json, is %q", c.Log.Format)
	}
	return nil
}

// The audit log removes no line for its age in a daemon's first 24 hours, as the clock may be wrong. So a shorter
// time has no effect.
const minAuditKeep = 24 * time.Hour

func (a Audit) check() error {
	if err := within("audit.keep", a.Keep, minAuditKeep, ca.MaxTTL); err != nil {
		return err
	}
	if a.MaxSizeMiB < 1 || a.MaxSizeMiB > 1<<20 {
		return fmt.Errorf("audit.max_size_mib: from 1 to 1048576 MiB, is %d", a.MaxSizeMiB)
	}
	return nil
}

func (p Puppet) check() error {
	if p.Server == "" {
		return errors.New("puppet.server: must be set: the Puppet Server that provisioned nodes are to use")
	}
	if err := node.CheckDNSName("puppet.server", p.Server); err != nil {
		return err // with a port or a URL here, the agent of every instance would fail
	}
	if p.CAServer != "" {
		if err := node.CheckDNSName("puppet.ca_server", p.CAServer); err != nil {
			return err
		}
	}
	if p.Port < 1 || p.Port > 65535 {
		return fmt.Errorf("puppet.port: from 1 to 65535, is %d", p.Port)
	}
	return within("puppet.run_interval", p.RunInterval, time.Minute, 30*24*time.Hour)
}

func (a Authority) check() error {
	switch {
	case (a.Directory == nil) == (a.PuppetServer == nil):
		return errors.New("authority: exactly one of directory and puppetserver must be set")
	case a.Directory != nil && a.Directory.Path == "":
		return errors.New("authority.directory.path: must be set: the Puppet CA directory that espm owns")
	case a.Directory != nil:
		if key := a.Directory.Key; key != "" {
			if _, err := pkcs11.ParseURI(key); err != nil {
				return fmt.Errorf("authority.directory.key: %w", err)
			}
		}
		for i, p := range a.Directory.Publish {
			if p == "" {
				return fmt.Errorf("authority.directory.publish[%d]: must not be empty", i)
			}
		}
		return a.Directory.CRL.check()
	}
	p := a.PuppetServer
	if p.URL == "" {
		return errors.New("authority.puppetserver.url: must be set: the Puppet Server that has the CA, such as https://puppet.example.com:8140")
	}
	if _, err := ParseURL(p.URL); err != nil {
		return fmt.Errorf("authority.puppetserver.url: %w", err)
	}
	if (p.Certificate == "") != (p.Key == "") {
		return errors.New("authority.puppetserver: certificate and key belong together")
	}
	return nil
}

// ParseURL reads authority.puppetserver.url. The URL must have a port: the default
// would be 443, but no Puppet Server listens there.
func ParseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.User != nil ||
		(u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q: must be https://HOST:PORT and no more, such as https://puppet.example.com:8140", s)
	}
	return u, nil
}

// The shortest CRL validity is three days. An agent of Puppet 8 fetches the CRL once a day, and a CRL may have only
// a third of its validity left. An expired certificate stays on the CRL for at least a day, as
// clocks may be a day behind.
const (
	minCRLValidity = 72 * time.Hour
	minKeepExpired = 24 * time.Hour
)

func (c CRL) check() error {
	if err := within("authority.directory.crl.validity", c.Validity, minCRLValidity, ca.MaxTTL); err != nil && c.Validity != 0 {
		return err
	}
	if err := within("authority.directory.crl.keep_expired", c.KeepExpired, minKeepExpired, ca.MaxTTL); err != nil && c.KeepExpired != 0 {
		return err
	}
	return nil
}

func within(field string, d Duration, least, most time.Duration) error {
	if time.Duration(d) < least || time.Duration(d) > most {
		return fmt.Errorf("%s: from %v to %v, is %v", field, node.Duration(least), node.Duration(most), d)
	}
	return nil
}

func (c *Config) checkListen() error {
	path, ok := strings.CutPrefix(c.Listen, "unix://")
	if !ok {
		return fmt.Errorf("listen: %q: must be unix:///PATH; a network address belongs in network.listen, which has TLS: refusing to serve private keys in the clear", c.Listen)
	}
	return checkSocket("listen", path)
}

// checkSocket checks a socket's path. The kernel's sockaddr_un has 108 bytes, one of them NUL.
func checkSocket(setting, path string) error {
	if path == "" || len(path) > 107 {
		return fmt.Errorf("%s: %q: a socket's path has 1 to 107 bytes", setting, path)
	}
	return nil
}

func (c *Config) checkENC() error {
	if err := checkSocket("enc.socket", c.ENC.Socket); err != nil {
		return err
	}
	policies := []string{enc.Fail, enc.Blank, enc.Command}
	if !slices.Contains(policies, c.ENC.UnknownNodes) {
		return fmt.Errorf("enc.unknown_nodes: one of %s, is %q", strings.Join(policies, ", "), c.ENC.UnknownNodes)
	}
	words := strings.Fields(c.ENC.Command)
	switch {
	case c.ENC.UnknownNodes == enc.Command && (len(words) == 0 || !filepath.IsAbs(words[0])):
		return fmt.Errorf("enc.command: must be an absolute path, and arguments, where enc.unknown_nodes is command; is %q", c.ENC.Command)
	case c.ENC.UnknownNodes != enc.Command && len(words) > 0:
		return errors.New("enc.command: has a meaning only where enc.unknown_nodes is command")
	}
	return nil
}
