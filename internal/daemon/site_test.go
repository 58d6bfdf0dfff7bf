package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/test/need"
)

// fakePuppet puts a command puppet first in PATH, which notes how it was called.
func fakePuppet(t *testing.T, script string) (calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho \"$*\" >>'" + log + "'\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "puppet"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() string {
		b, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
}

const answers = `cat <<END
Warning: what other versions print first
hostcert = /ssl/certs/puppet.test.pem
hostprivkey = /ssl/private_keys/puppet.test.pem
localcacert = /ssl/certs/ca.pem
certname = puppet.test
serverport = 8140
ca_server = ca.test
ca_port = 8141
cacert = %CACERT%
config = /etc/puppet/puppet.conf
group = no-such-group
node_terminus = %TERMINUS%
external_nodes = %ENC%
END`

func answered(cacert, terminus, enc string) string {
	return strings.NewReplacer("%CACERT%", cacert, "%TERMINUS%", terminus, "%ENC%", enc).Replace(answers)
}

func TestFilesComeFromPuppetWhereNotSet(t *testing.T) {
	calls := fakePuppet(t, answered("/none", "plain", "none"))
	set := config.PuppetServer{URL: "https://p:8140"}
	for _, c := range []struct{ set, want config.PuppetServer }{
		{set, config.PuppetServer{URL: set.URL, Certificate: "/ssl/certs/puppet.test.pem", Key: "/ssl/private_keys/puppet.test.pem", CA: "/ssl/certs/ca.pem"}},
		{config.PuppetServer{CA: "/ca"}, config.PuppetServer{Certificate: "/ssl/certs/puppet.test.pem", Key: "/ssl/private_keys/puppet.test.pem", CA: "/ca"}},
		{config.PuppetServer{Certificate: "/c", Key: "/k"}, config.PuppetServer{Certificate: "/c", Key: "/k", CA: "/ssl/certs/ca.pem"}},
	} {
		if got, err := fromPuppet(t.Context(), c.set); err != nil || got != c.want {
			t.Errorf("%+v gives %+v, %v, want %+v", c.set, got, err, c.want)
		}
	}
	want := strings.Repeat("config print hostcert hostprivkey localcacert --section server --color=false\n", 3)
	if got := calls(); got != want {
		t.Errorf("called with %q, want one call each: %q", got, want)
	}
	full := config.PuppetServer{Certificate: "/c", Key: "/k", CA: "/ca"}
	if got, err := fromPuppet(t.Context(), full); err != nil || got != full || calls() != want {
		t.Errorf("all is set, and yet: %+v, %v, calls %q", got, err, calls())
	}
}

func TestPuppetAskedInVain(t *testing.T) {
	for script, says := range map[string]string{
		"echo 'Error: no rights' >&2; echo more >&2; exit 1": "exit status 1: Error: no rights",
		"echo 'hostcert = /c'; echo 'hostprivkey = /k'":      "does not tell localcacert",
		"kill -KILL $$": "signal: killed",
		"echo /the/form/of/one/setting; echo 'hostcert=/other/spaces'": "does not tell hostcert",
	} {
		fakePuppet(t, script)
		_, err := fromPuppet(t.Context(), config.PuppetServer{})
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "authority.puppetserver: ") {
			t.Errorf("%s: got %v, want one line with %q", script, err, says)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := os.Stat(vendorPuppet); err == nil {
		need.This(t, errors.New("this host has the vendor's puppet"))
	}
	if _, err := fromPuppet(t.Context(), config.PuppetServer{}); err == nil || !strings.Contains(err.Error(), "there is no command puppet") {
		t.Errorf("without puppet: %v", err)
	}
}

func TestSiteIsWhatPuppetSays(t *testing.T) {
	cacert := filepath.Join(t.TempDir(), "ca_crt.pem")
	if err := os.WriteFile(cacert, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		puppet                string
		options               InitOptions
		url, server, command  string
		protected             string
		unknown, certificates string
	}{
		"the CA is here": {puppet: answered(cacert, "plain", "none"),
			url: "https://puppet.test:8141", server: "puppet.test", protected: "puppet.test", unknown: enc.Blank, certificates: "/ssl/certs/puppet.test.pem"},
		"the CA is elsewhere": {puppet: answered("/none", "plain", "none"),
			url: "https://ca.test:8141", server: "puppet.test", protected: "puppet.test ca.test", unknown: enc.Blank, certificates: "/ssl/certs/puppet.test.pem"},
		"another ENC": {puppet: answered(cacert, "exec", "/usr/bin/other --flag"),
			url: "https://puppet.test:8141", server: "puppet.test", protected: "puppet.test", unknown: enc.Command, command: "/usr/bin/other --flag", certificates: "/ssl/certs/puppet.test.pem"},
		"espm-enc already": {puppet: answered(cacert, "exec", "/usr/bin/espm-enc"),
			url: "https://puppet.test:8141", server: "puppet.test", protected: "puppet.test", unknown: enc.Blank, certificates: "/ssl/certs/puppet.test.pem"},
		"flags win": {puppet: answered(cacert, "plain", "none"),
			options: InitOptions{Certname: "p.test", PuppetServer: &config.PuppetServer{URL: "https://10.0.0.1:8140", Certificate: "/c", Key: "/k"}},
			url:     "https://10.0.0.1:8140", server: "p.test", protected: "p.test", unknown: enc.Blank, certificates: "/c"},
		"without Puppet": {puppet: "exit 1",
			options: InitOptions{PuppetServer: &config.PuppetServer{URL: "https://p.test:8150", Certificate: "/c", Key: "/k", CA: "/ca"}},
			url:     "https://p.test:8150", server: "p.test", protected: "p.test", unknown: enc.Blank, certificates: "/c"},
	} {
		t.Run(name, func(t *testing.T) {
			calls := fakePuppet(t, c.puppet)
			c.options.Puppet = FindPuppet(t.Context())
			if c.options.PuppetServer == nil {
				c.options.PuppetServer = &config.PuppetServer{}
			}
			got, err := c.options.site()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.options.Puppet.CA(); (err != nil) != (c.puppet == "exit 1") {
				t.Error(err)
			}
			if n := strings.Count(calls(), "\n"); n != 1 {
				t.Errorf("Puppet was asked %d times", n)
			}
			if got.PuppetServer.URL != c.url || got.Server != c.server || strings.Join(got.Protected, " ") != c.protected ||
				got.Unknown != c.unknown || got.Command != c.command || got.PuppetServer.Certificate != c.certificates || got.Group != "" && name != "without Puppet" {
				t.Errorf("got %+v, of the server %+v", got, *got.PuppetServer)
			}
			if got.PuppetServer.Key == "" || got.PuppetServer.CA == "" {
				t.Errorf("got %+v", *got.PuppetServer)
			}
		})
	}
}
