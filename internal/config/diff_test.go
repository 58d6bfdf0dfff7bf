package config

import (
	"slices"
	"testing"
	"time"
)

func TestDiff(t *testing.T) {
	base := func() Config {
		return Config{
			File: "/a", Authority: Authority{Directory: &Directory{Path: "ca"}}, Issue: Issue{KeyPool: new(4)}, Protected: []string{"a"},
		}
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"nothing": {func(c *Config) { c.File = "/b" }, nil},
		"several": {func(c *Config) { c.Log.Level, c.ENC.UnknownNodes = "debug", "empty" }, []string{"enc.unknown_nodes", "log.level"}},
		"list":    {func(c *Config) { c.Protected = []string{"a", "b"} }, []string{"protected_certnames"}},
		"pointer": {func(c *Config) { *c.Issue.KeyPool = 5 }, []string{"certificates.key_pool"}},
		"deep":    {func(c *Config) { c.Authority.Directory.CRL.Validity = Duration(time.Hour) }, []string{"authority.directory.crl.validity"}},
		"kind": {func(c *Config) { c.Authority = Authority{PuppetServer: &PuppetServer{}} },
			[]string{"authority.directory", "authority.puppetserver"}},
	} {
		changed := base()
		c.change(&changed)
		if got := Diff(base(), changed); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
