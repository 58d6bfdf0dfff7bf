package site

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/test/need"
	"github.com/espm-project/espm/test/testbed"
)

func TestFilesComeFromPuppetWhereNotSet(t *testing.T) {
	calls := testbed.Puppet(t, testbed.PuppetAnswers("/none", "plain", "none"))
	set := config.PuppetServer{URL: "https://p:8140"}
	for _, c := range []struct{ set, want config.PuppetServer }{
		{set, config.PuppetServer{URL: set.URL, Certificate: "/ssl/certs/puppet.test.pem", Key: "/ssl/private_keys/puppet.test.pem", CA: "/ssl/certs/ca.pem"}},
		{config.PuppetServer{CA: "/ca"}, config.PuppetServer{Certificate: "/ssl/certs/puppet.test.pem", Key: "/ssl/private_keys/puppet.test.pem", CA: "/ca"}},
		{config.PuppetServer{Certificate: "/c", Key: "/k"}, config.PuppetServer{Certificate: "/c", Key: "/k", CA: "/ssl/certs/ca.pem"}},
	} {
		if got, err := FromPuppet(t.Context(), c.set); err != nil || got != c.want {
			t.Errorf("%+v gives %+v, %v, want %+v", c.set, got, err, c.want)
		}
	}
	want := strings.Repeat("config print hostcert hostprivkey localcacert --section server --color=false\n", 3)
	if got := calls(); got != want {
		t.Errorf("called with %q, want one call each: %q", got, want)
	}
	full := config.PuppetServer{Certificate: "/c", Key: "/k", CA: "/ca"}
	if got, err := FromPuppet(t.Context(), full); err != nil || got != full || calls() != want {
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
		testbed.Puppet(t, script)
		_, err := FromPuppet(t.Context(), config.PuppetServer{})
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "authority.puppetserver: ") {
			t.Errorf("%s: got %v, want one line with %q", script, err, says)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := os.Stat(vendorPuppet); err == nil {
		need.This(t, errors.New("this host has the vendor's puppet"))
	}
	if _, err := FromPuppet(t.Context(), config.PuppetServer{}); err == nil || !strings.Contains(err.Error(), "there is no command puppet") {
		t.Errorf("without puppet: %v", err)
	}
}
