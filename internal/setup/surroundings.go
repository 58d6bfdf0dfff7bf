package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/site"
)

// surroundings are the settings of a new configuration that depend on Puppet Server.
type surroundings struct {
	Server    string // the server that nodes use
	Port      int
	Protected []string
	Group     string // of the server's user; "": none that this user may set
	Unknown   string // enc.unknown_nodes and enc.command
	Command   string

	PuppetServer *config.PuppetServer // with the files that were found; nil: espm owns the CA
	given        config.PuppetServer  // the same, but only with the files in InitOptions
	puppetConf   string               // the server's puppet.conf; "": not known
}

// PuppetServer describes a server that keeps its CA.
type PuppetServer struct {
	URL        string
	Version    string   // of its CA service; "": unknown
	Client     string   // the certname in espm's client certificate; "": the server was not asked
	Rules      []string // the rules that its auth.conf lacks
	PuppetConf string   // its puppet.conf; "": not known
}

// asks is the time limit of the calls to a server.
const asks = time.Minute

// surroundings returns the settings of a new configuration.
func (o InitOptions) surroundings() (surroundings, error) {
	if o.PuppetServer == nil {
		return o.ownSurroundings()
	}
	set := *o.PuppetServer
	for _, file := range []*string{&set.Certificate, &set.Key, &set.CA} {
		if *file != "" { // in the configuration, a relative path is relative to its folder
			abs, err := filepath.Abs(*file)
			if err != nil {
				return surroundings{}, err
			}
			*file = abs
		}
	}
	var settings map[string]string
	if set.URL == "" || set.Certificate == "" || set.CA == "" {
		var err error
		if settings, err = o.Puppet.settings(); err != nil {
			return surroundings{}, fmt.Errorf("%w; run init as root on Puppet Server's host; elsewhere give --url, --certificate, --key and --ca", err)
		}
		if set.URL == "" {
			set.URL = caURL(settings)
		}
	}
	base, err := config.ParseURL(set.URL)
	if err != nil {
		return surroundings{}, fmt.Errorf("--url: %w", err)
	}
	// The configuration names the files, as Puppet has other paths for the daemon's user.
	s := surroundings{PuppetServer: new(site.WithIdentity(set, settings)), given: set, puppetConf: settings["config"]}
	s.Unknown, s.Command = classifier(settings)
	s.Group = site.UsableGroup(cmp.Or(settings["group"], "puppet"))
	s.Server = cmp.Or(o.Certname, settings["certname"], base.Hostname())
	if err := node.CheckDNSName("--certname", s.Server); err != nil {
		return surroundings{}, err
	}
	s.Port, err = strconv.Atoi(cmp.Or(settings["serverport"], base.Port(), "8140"))
	if err != nil {
		return surroundings{}, fmt.Errorf("serverport: %w", err)
	}
	s.Protected = []string{s.Server}
	host := base.Hostname()
	if _, err := node.ParseCertname(host); err == nil && host != s.Server && node.CheckDNSName("", host) == nil {
		s.Protected = append(s.Protected, host) // the CA's host, if that is another one
	}
	return s, nil
}

// ownSurroundings returns the settings if espm owns the CA. With Dir, they do not depend on this host.
func (o InitOptions) ownSurroundings() (surroundings, error) {
	s := surroundings{Server: o.Certname, Port: 8140, Protected: []string{o.Certname}, Unknown: enc.Fail}
	if o.Dir != "" {
		return s, nil
	}
	settings, err := o.Puppet.settings()
	if errors.Is(err, site.ErrNoPuppet) {
		return s, nil
	}
	s.Group = site.UsableGroup(settings["group"])
	return s, err
}

// caURL returns the URL of the CA of this host's Puppet. If the CA's files are on this host, it has the
// host's certname, as ca_server may be a name for agents only.
func caURL(settings map[string]string) string {
	host := settings["ca_server"]
	if site.Exists(settings["cacert"]) {
		host = settings["certname"]
	}
	return "https://" + net.JoinHostPort(host, settings["ca_port"])
}

// classifier returns the settings for nodes that espm does not know. Nothing changes for
// them: the ENC that the server has still answers, and without one, site.pp
// applies.
func classifier(settings map[string]string) (unknown, command string) {
	words := strings.Fields(settings["external_nodes"])
	if settings["node_terminus"] == "exec" && len(words) > 0 && filepath.IsAbs(words[0]) && filepath.Base(words[0]) != "espm-enc" {
		return enc.Command, strings.Join(words, " ")
	}
	return enc.Blank, ""
}

// ask checks the server. It returns the rules that are missing. Any other problem
// is an error.
func (o InitOptions) ask(ctx context.Context, s surroundings) (*PuppetServer, error) {
	if s.PuppetServer == nil {
		return nil, nil
	}
	about := &PuppetServer{URL: s.PuppetServer.URL, PuppetConf: s.puppetConf}
	authority, err := site.OpenPuppetServer(ctx, *s.PuppetServer, puppetserver.Options{})
	if err != nil {
		return nil, site.FoundBy(s.given, err)
	}
	defer authority.Close()
	if o.Unasked {
		return about, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, asks, fmt.Errorf("no answer within %v", asks))
	defer cancel()
	var problems []error
	about.Version, problems = authority.Probe(ctx)
	about.Client = authority.Client()
	for _, problem := range problems {
		forbidden, ok := errors.AsType[*puppetserver.ForbiddenError](problem)
		if !ok || forbidden.Rule == "" || forbidden.NotPresented != "" {
			return nil, fmt.Errorf("%w; --no-check skips this check of the server", problem)
		}
		about.Rules = append(about.Rules, forbidden.Rule)
	}
	return about, nil
}
