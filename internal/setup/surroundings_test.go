package setup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/test/testbed"
)

func TestSurroundingsAreWhatPuppetSays(t *testing.T) {
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
		"the CA is here": {puppet: testbed.PuppetAnswers(cacert, "plain", "none"),
			url: "https://puppet.test:8141", server: "puppet.test", protected: "puppet.test", unknown: enc.Blank, certificates: "/ssl/certs/puppet.test.pem"},
		"the CA is elsewhere": {puppet: testbed.PuppetAnswers("/none", "plain", "none"),
			url: "https://ca.test:8141", server: "puppet.test", protected: "puppet.test ca.test", unknown: enc.Blank, certificates: "/ssl/certs/puppet.test.pem"},
		"another ENC": {puppet: testbed.PuppetAnswers(cacert, "exec", "/usr/bin/other --flag"),
			url: "https://puppet.test:8141", server: "puppet.test", protected: "puppet.test", unknown: enc.Command, command: "/usr/bin/other --flag", certificates: "/ssl/certs/puppet.test.pem"},
		"espm-enc already": {puppet: testbed.PuppetAnswers(cacert, "exec", "/usr/bin/espm-enc"),
			url: "https://puppet.test:8141", server: "puppet.test", protected: "puppet.test", unknown: enc.Blank, certificates: "/ssl/certs/puppet.test.pem"},
		"flags win": {puppet: testbed.PuppetAnswers(cacert, "plain", "none"),
			options: InitOptions{Certname: "p.test", PuppetServer: &config.PuppetServer{URL: "https://10.0.0.1:8140", Certificate: "/c", Key: "/k"}},
			url:     "https://10.0.0.1:8140", server: "p.test", protected: "p.test", unknown: enc.Blank, certificates: "/c"},
		"without Puppet": {puppet: "exit 1",
			options: InitOptions{PuppetServer: &config.PuppetServer{URL: "https://p.test:8150", Certificate: "/c", Key: "/k", CA: "/ca"}},
			url:     "https://p.test:8150", server: "p.test", protected: "p.test", unknown: enc.Blank, certificates: "/c"},
	} {
		t.Run(name, func(t *testing.T) {
			calls := testbed.Puppet(t, c.puppet)
			c.options.Puppet = FindPuppet(t.Context())
			if c.options.PuppetServer == nil {
				c.options.PuppetServer = &config.PuppetServer{}
			}
			got, err := c.options.surroundings()
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
