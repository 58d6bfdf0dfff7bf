package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/serverfile"
	"github.com/espm-project/espm/internal/site"
)

// PuppetHost is the Puppet on this host.
type PuppetHost struct {
	settings func() (map[string]string, error) // the settings that Init needs
	disk     durable.Disk
}

// FindPuppet returns this host's Puppet. It reads the settings once, when they are needed.
func FindPuppet(ctx context.Context) *PuppetHost {
	return &PuppetHost{sync.OnceValues(func() (map[string]string, error) {
		return site.Settings(ctx, append(slices.Clone(site.Identity), "certname", "serverport", "ca_server", "ca_port", "cacert", "config",
			"group", "node_terminus", "external_nodes")...)
	}), durable.OS}
}

// Conf returns the path of this host's puppet.conf.
func (h *PuppetHost) Conf() (string, error) {
	settings, err := h.settings()
	return settings["config"], err
}

// CA returns the path of the CA certificate of the Puppet Server on this host, or "" if there is no
// Puppet, or no CA.
func (h *PuppetHost) CA() (string, error) {
	settings, err := h.settings()
	if errors.Is(err, site.ErrNoPuppet) || err == nil && !site.Exists(settings["cacert"]) {
		return "", nil
	}
	return settings["cacert"], err
}

// Certname returns the certname of the Puppet Server on this host, or else the host's name.
func (h *PuppetHost) Certname() (string, error) {
	settings, err := h.settings()
	if errors.Is(err, site.ErrNoPuppet) {
		return os.Hostname()
	}
	return settings["certname"], err
}

// Apply changes puppet.conf so that Puppet Server uses command, which is espm-enc with its arguments, as its ENC. It
// adds to auth.conf the rules that Init has found missing, so that espm may sign and revoke. It
// returns the changed files. If a file can't be changed, or a setting has another value, Apply returns an
// error and changes no file. After any other error, a second call completes the work. Apply restarts nothing.
func (h *PuppetHost) Apply(made Initialized, command string) ([]*serverfile.Change, error) {
	settings, err := h.settings()
	if err != nil {
		return nil, err
	}
	program, _, _ := strings.Cut(command, " ")
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("the program for external_nodes: %w", err)
	}
	var all []*serverfile.Change
	if s := made.PuppetServer; s != nil && len(s.Rules) > 0 {
		c, err := planRules(settings, *s)
		if err != nil {
			return nil, fmt.Errorf("%w; nothing of Puppet's was changed: add the rules by hand, and run this again", err)
		}
		all = append(all, c)
	}
	c, err := serverfile.Plan(settings["config"], func(text []byte) ([]byte, error) {
		return serverfile.SetPuppetConf(text, serverfile.ENC(command))
	})
	if taken, ok := errors.AsType[*serverfile.TakenError](err); ok {
		return nil, fmt.Errorf("%w, and nothing of Puppet's was changed. %s", err, moveOver(*taken, made.Config))
	}
	if err != nil {
		return nil, err
	}
	all = append(all, c)
	for _, c := range all {
		if err := c.Apply(h.disk, time.Now()); err != nil {
			return all, fmt.Errorf("%w; solve this and run the command again", err)
		}
	}
	return all, nil
}

// moveOver returns the advice for a setting that has another value.
func moveOver(taken serverfile.TakenError, config string) string {
	if taken.Name != "external_nodes" || strings.Contains(taken.Value, "espm-enc") {
		return "Set it yourself, or take the line out and run this again"
	}
	return fmt.Sprintf("So that this ENC goes on answering for nodes that espm does not know, have enc.unknown_nodes: command and enc.command: %s in %s; then take the line out and run this again",
		taken.Value, config)
}

// planRules plans the rules for auth.conf. The server must be on this host.
func planRules(settings map[string]string, s PuppetServer) (*serverfile.Change, error) {
	if !site.Exists(settings["cacert"]) || s.URL != caURL(settings) {
		return nil, fmt.Errorf("the CA at %s is not this host's (%s), so its auth.conf is not here", s.URL, settings["certname"])
	}
	places := authConfs(settings)
	for _, path := range places {
		if site.Exists(path) {
			return serverfile.Plan(path, func(text []byte) ([]byte, error) { return serverfile.AddRules(text, s.Rules) })
		}
	}
	return nil, fmt.Errorf("there is no auth.conf at %s", strings.Join(places, " or "))
}

// authConfs are the places where packages have the auth.conf of the server on this host.
func authConfs(settings map[string]string) []string {
	confdir := filepath.Dir(settings["config"])
	return []string{
		filepath.Join(confdir, "puppetserver/conf.d/auth.conf"),               // Debian's
		filepath.Join(filepath.Dir(confdir), "puppetserver/conf.d/auth.conf"), // the vendor's
	}
}
