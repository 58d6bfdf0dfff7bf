package serverfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/durable"
)

const command = "/usr/bin/espm-enc"

const lines = "node_terminus = exec\nexternal_nodes = " + command + "\n"

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSetPuppetConf(t *testing.T) {
	debian, vendor := read(t, "testdata/puppet-debian.conf"), read(t, "testdata/puppet-vendor.conf")
	for name, test := range map[string]struct{ text, want string }{
		"Debian's":             {debian, debian + "\n[server]\n" + lines},
		"the vendor's":         {vendor, vendor + lines},
		"none":                 {"", "[server]\n" + lines},
		"no newline":           {"[main]\nx = 1", "[main]\nx = 1\n\n[server]\n" + lines},
		"no newline, [server]": {"[server]\nx = 1", "[server]\nx = 1\n" + lines},
		"others behind":        {"[server]\n# one\nx = 1\n\n# of agents\n[agent]\ny = 2\n", "[server]\n# one\nx = 1\n" + lines + "\n# of agents\n[agent]\ny = 2\n"},
		"empty section":        {"[server]\n\n[agent]\n", "[server]\n" + lines + "\n[agent]\n"},
		"twice":                {"[server]\nx = 1\n[agent]\n[server]\ny = 2\n", "[server]\nx = 1\n[agent]\n[server]\ny = 2\n" + lines},
		"one is there":         {"[server]\nnode_terminus=exec\n", "[server]\nnode_terminus=exec\nexternal_nodes = " + command + "\n"},
		"of agents":            {"[agent]\nnode_terminus = plain\n", "[agent]\nnode_terminus = plain\n\n[server]\n" + lines},
		"comments":             {"[server]\n#node_terminus = plain\n", "[server]\n" + lines + "#node_terminus = plain\n"},
		"in master":            {"[master]\n" + lines, "[master]\n" + lines},
		"in main":              {lines, lines},
		"in quotes":            {"[main]\nnode_terminus = exec\nexternal_nodes = '" + command + "'\n", "[main]\nnode_terminus = exec\nexternal_nodes = '" + command + "'\n"},
		"server is first":      {"[main]\nnode_terminus = plain\n[server]\n" + lines, "[main]\nnode_terminus = plain\n[server]\n" + lines},
		"CRLF":                 {"[server]\r\nx = 1\r\n", "[server]\r\nx = 1\r\n" + lines},
	} {
		got, err := SetPuppetConf([]byte(test.text), ENC(command))
		if err != nil || string(got) != test.want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, test.want)
		}
		if again, err := SetPuppetConf(got, ENC(command)); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: the second time: got %q, %v", name, again, err)
		}
	}
}

func TestSetPuppetConfLeavesOthers(t *testing.T) {
	for text, want := range map[string]TakenError{
		"[server]\nnode_terminus = exec\nexternal_nodes = /opt/other --all\n": {"server", "external_nodes", "/opt/other --all", command},
		"[master]\nexternal_nodes = /opt/other\n":                             {"master", "external_nodes", "/opt/other", command},
		"node_terminus = plain\n":                                             {"main", "node_terminus", "plain", "exec"},
		"[main]\nexternal_nodes = /usr/bin/espm-enc --db /x\n":                {"main", "external_nodes", "/usr/bin/espm-enc --db /x", command},
		"[server]\nnode_terminus = plain\n[main]\nnode_terminus = exec\n":     {"server", "node_terminus", "plain", "exec"},
		"[server]\nnode_terminus = exec # ours\n":                             {"server", "node_terminus", "exec # ours", "exec"},
	} {
		got, err := SetPuppetConf([]byte(text), ENC(command))
		taken, ok := errors.AsType[*TakenError](err)
		if got != nil || !ok || *taken != want {
			t.Errorf("%q: got %q, %v, want %v", text, got, err, &want)
		}
	}
}

var rules = []string{
	`{ match-request: { path: "/puppet-ca/v1/clean", type: path, method: put }, allow: ["espm.test"], sort-order: 400, name: "espm clean" }`,
	`{ match-request: { path: "/puppet-ca/v1/certificate_status", type: path }, allow: ["espm.test"], sort-order: 400, name: "espm status" }`,
}

const added = "\n        "

func TestAddRules(t *testing.T) {
	both := added + rules[0] + "," + added + rules[1] + ","
	test := func(name, before, after string) {
		t.Helper()
		got, err := AddRules([]byte(before+after), rules)
		if err != nil || string(got) != before+both+after {
			t.Errorf("%s: got %q, %v", name, got, err)
			return
		}
		if again, err := AddRules(got, rules); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: the second time: got %q, %v", name, again, err)
		}
	}
	for _, file := range []string{"auth-7.9.conf", "auth-8.7.conf"} {
		before, after, _ := strings.Cut(read(t, "testdata/"+file), "    rules: [")
		test(file, before+"    rules: [", after)
	}
	test("JSON", `{"authorization": {"version": 1, "rules": [`, `{"a": "]"}]}}`)
	test("equals signs", "authorization = {\n rules = [", "\n]\n}\n")
	test("no sign", "authorization {\nversion: 1\nrules: [", "{}]}")
	test("other things", "other: [1, {rules: []}]\nword: a b \"c\" d\ntext: \"\"\"]}\" \"\"\"\"\nauthorization: {\n# rules: [\n// rules: [\nrules:\n[", " ${x} # ]\n]\n more.rules: []}\n")
	test("its words in comments", "authorization: { rules: [", "\n#"+rules[0]+"\n//"+rules[1]+"\n{name: \""+`{ match \" }`+"\"} ]}")

	// Of two, what one lacks.
	got, err := AddRules([]byte("authorization: { rules: [ "+rules[1]+" ] }"), rules)
	if want := "authorization: { rules: [" + added + rules[0] + ", " + rules[1] + " ] }"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestAddRulesKnowsItsForm(t *testing.T) {
	for _, text := range []string{
		"", "rules: []", "authorization: {}", "authorization: { rules: {} }", "authorization: []",
		"authorization.rules: []",
		"authorization: { rules: [] }\nauthorization.rules: []",
		"authorization: { rules: [] }\nauthorization: { version: 1 }",
		"authorization: { rules: []\nrules: [] }",
		"authorization: { rules: [] [] }",
		"authorization: { rules: [] ${more} }",
		"authorization: { rules: ${more} [] }",
		"authorization: { rules += [] }",
		"authorization: ${base} { rules: [] }",
		"authorization: { rules: [] } { version: 2 }",
		"include \"other.conf\"\nauthorization: { rules: [] }",
		"authorization: { rules: [ }", "authorization: { rules: ] }", "authorization: { rules: [ } ] }", "authorization: { rules: [] ",
		"authorization: { rules: [] }\n}", "authorization: { rules: [ \"x ] }", "authorization: { rules: [ \"\"\"x\" ] }",
		"{ authorization: { rules: [] } } more: 1",
		"authorization: { rules: ",
	} {
		if got, err := AddRules([]byte(text), rules); !errors.Is(err, ErrForm) || got != nil {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}

// Whatever the file holds, what is added can be taken out again, and is added once.
func FuzzAddRules(f *testing.F) {
	for _, seed := range []string{"authorization: { rules: [ {a: 1} ] }", "{\"authorization\" = {rules=[\n]\n}}", "authorization { rules: [\"\"\"x\"\"\"] // ]\n}", "a: [}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := AddRules(text, rules[:1])
		if err != nil {
			return
		}
		add := added + rules[0] + ","
		if !bytes.Equal(got, text) && (strings.Count(string(got), add) != strings.Count(string(text), add)+1 || strings.Replace(string(got), add, "", 1) != string(text)) {
			t.Errorf("%q became %q", text, got)
		}
		if again, err := AddRules(got, rules[:1]); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%q became %q, and then %q, %v", text, got, again, err)
		}
	})
}

func FuzzSetPuppetConf(f *testing.F) {
	for _, seed := range []string{"[server]\nx = 1\n", lines, "[master]\r\nnode_terminus=exec", "[agent]\n#"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := SetPuppetConf(text, ENC(command))
		if err != nil {
			return
		}
		if len(got) < len(text) {
			t.Errorf("%q became %q", text, got)
		}
		if again, err := SetPuppetConf(got, ENC(command)); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%q became %q, and then %q, %v", text, got, again, err)
		}
	})
}

var now = time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)

func plan(t *testing.T, path string) *Change {
	t.Helper()
	c, err := Plan(path, func(text []byte) ([]byte, error) { return SetPuppetConf(text, ENC(command)) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestApply(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "real.conf"), filepath.Join(dir, "puppet.conf")
	const was = "[server]\nx = 1\n"
	for _, err := range []error{os.WriteFile(path, []byte(was), 0o640), os.Symlink(path, link)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 1234, 4321); err != nil {
			t.Fatal(err)
		}
	}
	c := plan(t, link)
	if err := c.Apply(durable.OS, now); err != nil {
		t.Fatal(err)
	}
	if want := path + ".espm-20261123T010203Z"; c.Backup != want {
		t.Errorf("the backup is %s, want %s", c.Backup, want)
	}
	if got := read(t, c.Backup); got != was {
		t.Errorf("the backup holds %q", got)
	}
	if got := read(t, link); got != was+lines {
		t.Errorf("got %q", got)
	}
	for _, file := range []string{path, c.Backup} {
		info, err := os.Lstat(file)
		if err != nil || info.Mode() != 0o640 {
			t.Fatalf("%s: %v, %v", file, info.Mode(), err)
		}
		if owner := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 && (owner.Uid != 1234 || owner.Gid != 4321) {
			t.Errorf("%s belongs to %d:%d", file, owner.Uid, owner.Gid)
		}
	}

	again := plan(t, link)
	if err := again.Apply(durable.OS, now.Add(time.Minute)); err != nil || again.Needed() || again.Backup != "" {
		t.Errorf("the second time: %v, %q", err, again.Backup)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 3 {
		t.Errorf("got %v, %v", all, err)
	}
	// A backup is never overwritten.
	if err := os.WriteFile(path, []byte("[server]\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	third := plan(t, link)
	if err := third.Apply(durable.OS, now); err != nil || third.Backup != c.Backup+"-2" {
		t.Errorf("got %v, %s", err, third.Backup)
	}
	if got := read(t, c.Backup) + read(t, third.Backup); got != was+"[server]\n" {
		t.Errorf("the backups hold %q", got)
	}
}

func TestApplyMakesFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "puppet.conf")
	c := plan(t, path)
	if err := c.Apply(durable.OS, now); err != nil || c.Backup != "" {
		t.Errorf("got %v, %q", err, c.Backup)
	}
	if got := read(t, path); got != "[server]\n"+lines {
		t.Errorf("got %q", got)
	}
}

var errFault = errors.New("fault")

// failing fails at the given write, before or after it is made: so does a crash.
type failing struct {
	durable.Disk
	at    int
	after bool
}

func (f *failing) WriteFile(path string, data []byte, mode fs.FileMode) error {
	f.at--
	if f.at == 0 && !f.after {
		return errFault
	}
	err := f.Disk.WriteFile(path, data, mode)
	if f.at == 0 {
		return errFault
	}
	return err
}

func TestApplyAfterFault(t *testing.T) {
	const was = "[server]\nx = 1\n"
	for at := 1; at <= 2; at++ {
		for _, after := range []bool{false, true} {
			path := filepath.Join(t.TempDir(), "puppet.conf")
			if err := os.WriteFile(path, []byte(was), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := plan(t, path).Apply(&failing{durable.OS, at, after}, now); !errors.Is(err, errFault) {
				t.Fatalf("got %v", err)
			}
			if got := read(t, path); got != was && got != was+lines {
				t.Errorf("got %q", got)
			}
			if err := plan(t, path).Apply(durable.OS, now); err != nil {
				t.Error(err)
			}
			if got, kept := read(t, path), read(t, path+".espm-20261123T010203Z"); got != was+lines || kept != was {
				t.Errorf("write %d, applied %v: got %q, kept %q", at, after, got, kept)
			}
		}
	}
}
