package serverfile

import (
	"path/filepath"
	"strings"
	"testing"
)

func isENC(program string) bool { return filepath.Base(program) == "espm-enc" }

// What Apply has added is taken out again, and the file is as it was, byte for byte.
func TestUnsetENC(t *testing.T) {
	for _, text := range []string{
		read(t, "testdata/puppet-debian.conf"), read(t, "testdata/puppet-vendor.conf"), "",
		"[server]\nx = 1\n", "[main]\nx = 1\n", "[server]\n\n[agent]\n", "[server]\r\nx = 1\r\n",
		"[server]\n# one\nx = 1\n\n# of agents\n[agent]\ny = 2\n", "[server]\n# nothing yet\n", "[agent]\nnode_terminus = exec\n",
	} {
		set, err := SetPuppetConf([]byte(text), ENC(command))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(UnsetENC(set, isENC, "")); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
	for name, test := range map[string]struct{ text, former, want string }{
		"no ENC":            {"[server]\nnode_terminus = plain\n", "", "[server]\nnode_terminus = plain\n"},
		"another ENC":       {"[server]\nnode_terminus = exec\nexternal_nodes = /opt/other\n", "", "[server]\nnode_terminus = exec\nexternal_nodes = /opt/other\n"},
		"the former ENC":    {"[server]\nnode_terminus = exec\nexternal_nodes = /usr/bin/espm-enc --db /x\n", "/opt/other --all", "[server]\nnode_terminus = exec\nexternal_nodes = /opt/other --all\n"},
		"by hand":           {"[main]\nnode_terminus=exec\nexternal_nodes='/usr/bin/espm-enc'\nx = 1\n", "", "[main]\nx = 1\n"},
		"one below another": {"[server]\nexternal_nodes = /usr/bin/espm-enc\n[main]\nnode_terminus = exec\nexternal_nodes = /opt/other\n", "", "[server]\n[main]\nnode_terminus = exec\nexternal_nodes = /opt/other\n"},
		"of agents":         {"[server]\n" + lines + "[agent]\n" + lines, "", "[server]\n[agent]\n" + lines},
		"commented":         {"[server]\n#" + lines + "external_nodes = " + command + "\n", "", "[server]\n#node_terminus = exec\n"},
	} {
		if got := string(UnsetENC([]byte(test.text), isENC, test.former)); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestRemoveRules(t *testing.T) {
	ours := func(rule string) bool { return strings.Contains(rule, `name: "espm `) }
	for _, text := range []string{
		read(t, "testdata/auth-7.9.conf"), read(t, "testdata/auth-8.7.conf"), `{"authorization": {"version": 1, "rules": []}}`,
		"authorization {\nversion: 1\nrules: [{}]}", "authorization: { rules: [\n#" + rules[0] + "\n{name: \"other\"} ] }",
	} {
		set, err := AddRules([]byte(text), rules)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := RemoveRules(set, ours); err != nil || string(got) != text {
			t.Errorf("got %q, %v, want %q", got, err, text)
		}
		if got, err := RemoveRules([]byte(text), ours); err != nil || string(got) != text {
			t.Errorf("without rules: got %q, %v, want %q", got, err, text)
		}
	}
	// An operator has put them elsewhere.
	moved := "authorization: { rules: [ {name: \"other\"}, " + rules[0] + " ] }"
	if got, err := RemoveRules([]byte(moved), ours); err != nil || string(got) != "authorization: { rules: [ {name: \"other\"},  ] }" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := RemoveRules([]byte("rules: []"), ours); err == nil {
		t.Error("a file of another form is taken")
	}
}
