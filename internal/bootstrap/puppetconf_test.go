package bootstrap

import (
	"strings"
	"testing"
)

func TestPuppetConf(t *testing.T) {
	s := Server{Name: "puppet.example.com", Port: 8141, CAServer: "ca.example.com"}
	want := "# Written by espm for web01.\n[main]\nssldir = $confdir/ssl\ncertname = web01\nserver = puppet.example.com\nserverport = 8141\n" +
		"ca_server = ca.example.com\nenvironment = production\n"
	if got := s.PuppetConf("web01", "production"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s.Template = "certname = ES_NODE_NAME\n# ES_NODE_NAME at ES_PUPPET_MASTER:ES_PUPPET_PORT\nenvironment = ES_ENVIRONMENT"
	if got, want := s.PuppetConf("web01", ""), "certname = web01\n# web01 at puppet.example.com:8141\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := s.URL(); got != "https://puppet.example.com:8141" {
		t.Error(got)
	}
}

func TestCheckTemplate(t *testing.T) {
	for text, rule := range map[string]string{
		DefaultTemplate:                     "",
		"[agent]\n\tcertname=ES_NODE_NAME ": "",
		"":                                  "certname = ES_NODE_NAME",
		"# certname = ES_NODE_NAME\n":       "certname = ES_NODE_NAME",
		"certname = x.ES_NODE_NAME\n":       "certname = ES_NODE_NAME",
		"certname = ES_NODE_NAME\n\x00":     "UTF-8",
		"certname = ES_NODE_NAME\n\xff":     "UTF-8",
		"certname = ES_NODE_NAME\n" + strings.Repeat("#", maxTemplate): "at most 65536 bytes",
	} {
		err := CheckTemplate(text)
		if (err == nil) != (rule == "") || err != nil && !strings.Contains(err.Error(), rule) {
			t.Errorf("%.40q: %v, want %q", text, err, rule)
		}
	}
}
