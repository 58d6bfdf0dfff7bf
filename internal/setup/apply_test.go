package setup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/durable"
)

const (
	theRule    = `{ match-request: { path: "/puppet-ca/v1/clean", type: path, method: put }, allow: ["puppet.test"], sort-order: 400, name: "espm clean" }`
	theCommand = "/bin/sh --socket /x"
)

// puppetHost is a Puppet Server's host, with its files in the folders of Debian's packages or of the vendor's.
func puppetHost(t *testing.T, vendor bool) (h *PuppetHost, auth string) {
	t.Helper()
	dir := t.TempDir()
	confdir := filepath.Join(dir, "puppet")
	conf := filepath.Join(confdir, "puppetserver/conf.d")
	if vendor {
		conf = filepath.Join(dir, "puppetserver/conf.d")
	}
	for _, folder := range []string{confdir, conf} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	auth = filepath.Join(conf, "auth.conf")
	settings := map[string]string{"config": filepath.Join(confdir, "puppet.conf"), "certname": "puppet.test",
		"cacert": filepath.Join(dir, "ca_crt.pem"), "ca_server": "puppet", "ca_port": "8140"}
	for name, text := range map[string]string{settings["config"]: "[main]\n", auth: "authorization: { rules: [] }\n", settings["cacert"]: ""} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &PuppetHost{func() (map[string]string, error) { return settings, nil }, durable.OS}, auth
}

func conf(t *testing.T, h *PuppetHost) string {
	t.Helper()
	path, err := h.Conf()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func lacking() Initialized {
	return Initialized{Config: "/etc/espm/espm.yaml", PuppetServer: &PuppetServer{URL: "https://puppet.test:8140", Client: "puppet.test", Rules: []string{theRule}}}
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// applied wants both files to be as they are to be.
func applied(t *testing.T, h *PuppetHost, auth string) {
	t.Helper()
	if got, want := text(t, auth), "authorization: { rules: [\n        "+theRule+",] }\n"; got != want {
		t.Errorf("auth.conf is %q, want %q", got, want)
	}
	if got, want := text(t, conf(t, h)), "[main]\n\n[server]\nnode_terminus = exec\nexternal_nodes = "+theCommand+"\n"; got != want {
		t.Errorf("puppet.conf is %q, want %q", got, want)
	}
}

// backups are the files that were kept.
func backups(t *testing.T, h *PuppetHost, auth string) []string {
	t.Helper()
	var all []string
	for _, path := range []string{conf(t, h), auth} {
		found, err := filepath.Glob(path + ".espm-*")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func TestApply(t *testing.T) {
	for _, vendor := range []bool{false, true} {
		h, auth := puppetHost(t, vendor)
		changes, err := h.Apply(lacking(), theCommand)
		if err != nil || len(changes) != 2 || !changes[0].Done || !changes[1].Done {
			t.Fatalf("got %+v, %v", changes, err)
		}
		applied(t, h, auth)
		// Puppet Server was not restarted yet, and says the same.
		if changes, err = h.Apply(lacking(), theCommand); err != nil || len(changes) != 2 || changes[0].Needed() || changes[1].Needed() {
			t.Errorf("the second time: got %+v, %v", changes, err)
		}
		applied(t, h, auth)
		if kept := backups(t, h, auth); len(kept) != 2 {
			t.Errorf("kept %v", kept)
		}
	}
}

// Undo after Apply gives both files back, byte for byte, also after a fault at any write.
func TestUndo(t *testing.T) {
	program := filepath.Join(t.TempDir(), "espm-enc")
	if err := os.WriteFile(program, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for at := range 5 {
		for _, after := range []bool{false, true} {
			h, auth := puppetHost(t, false)
			files := map[string]string{conf(t, h): text(t, conf(t, h)), auth: text(t, auth)}
			if _, err := h.Apply(lacking(), program+" --socket /x"); err != nil {
				t.Fatal(err)
			}
			if at > 0 {
				h.disk = &faulty{durable.OS, at, after}
				if _, err := h.Undo(t.TempDir()); !errors.Is(err, errFault) {
					t.Fatalf("write %d: got %v", at, err)
				}
				h.disk = durable.OS
			}
			if _, err := h.Undo(t.TempDir()); err != nil {
				t.Errorf("write %d, applied %v: %v", at, after, err)
			}
			for path, was := range files {
				if is := text(t, path); is != was {
					t.Errorf("write %d, applied %v: %s is %q, want %q", at, after, path, is, was)
				}
			}
		}
	}
}

func TestApplyLeavesOthers(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(h *PuppetHost, auth string, made *Initialized) error
		want  string
	}{
		"another ENC": {func(h *PuppetHost, _ string, _ *Initialized) error {
			return os.WriteFile(conf(t, h), []byte("[server]\nexternal_nodes = /opt/other --all\n"), 0o600)
		}, "[server] has external_nodes = /opt/other --all, not /bin/sh --socket /x: it is left as it is, and nothing of Puppet's was changed. " +
			"So that this ENC goes on answering for nodes that espm does not know, have enc.unknown_nodes: command and enc.command: /opt/other --all in /etc/espm/espm.yaml"},
		"another terminus": {func(h *PuppetHost, _ string, _ *Initialized) error {
			return os.WriteFile(conf(t, h), []byte("[main]\nnode_terminus = classifier\n"), 0o600)
		}, "[main] has node_terminus = classifier, not exec: it is left as it is, and nothing of Puppet's was changed. Set it yourself"},
		"another form": {func(_ *PuppetHost, auth string, _ *Initialized) error {
			return os.WriteFile(auth, []byte("authorization.rules: []\n"), 0o600)
		}, "is not in the form that espm knows, one object authorization with one array rules; nothing of Puppet's was changed: add the rules by hand"},
		"no auth.conf": {func(_ *PuppetHost, auth string, _ *Initialized) error { return os.Remove(auth) }, "there is no auth.conf at "},
		"no CA here": {func(h *PuppetHost, _ string, made *Initialized) error {
			made.PuppetServer.URL = "https://puppet:8140" // its ca_server
			cacert, err := h.CA()
			return errors.Join(err, os.Remove(cacert))
		}, "the CA at https://puppet:8140 is not this host's (puppet.test), so its auth.conf is not here; nothing"},
		"another host": {func(_ *PuppetHost, _ string, made *Initialized) error {
			made.PuppetServer.URL = "https://ca.test:8140"
			return nil
		}, "the CA at https://ca.test:8140 is not this host's (puppet.test)"},
	} {
		t.Run(name, func(t *testing.T) {
			h, auth := puppetHost(t, false)
			made := lacking()
			if err := test.spoil(h, auth, &made); err != nil {
				t.Fatal(err)
			}
			before := text(t, conf(t, h))
			changes, err := h.Apply(made, theCommand)
			if err == nil || !strings.Contains(err.Error(), test.want) || len(changes) > 0 {
				t.Errorf("got %v, %v, want %s", changes, err, test.want)
			}
			if kept := backups(t, h, auth); len(kept) > 0 || text(t, conf(t, h)) != before {
				t.Errorf("changed nevertheless: %v", kept)
			}
		})
	}
	h, _ := puppetHost(t, false)
	if _, err := h.Apply(lacking(), "/nowhere/espm-enc --db /x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no espm-enc: got %v", err)
	}
}

// faulty fails at the given write, once it is made or instead: so does a crash.
type faulty struct {
	durable.Disk
	at    int
	after bool
}

var errFault = errors.New("fault")

func (f *faulty) WriteFile(path string, data []byte, mode fs.FileMode) error {
	f.at--
	if f.at != 0 {
		return f.Disk.WriteFile(path, data, mode)
	}
	if f.after {
		return errors.Join(errFault, f.Disk.WriteFile(path, data, mode))
	}
	return errFault
}

// After a fault at any place each file is whole, and a second run finishes.
func TestApplyAfterFault(t *testing.T) {
	for at := 1; at <= 4; at++ {
		for _, after := range []bool{false, true} {
			h, auth := puppetHost(t, false)
			files := map[string]string{conf(t, h): text(t, conf(t, h)), auth: text(t, auth)}
			h.disk = &faulty{durable.OS, at, after}
			changes, err := h.Apply(lacking(), theCommand)
			if !errors.Is(err, errFault) || len(changes) != 2 || changes[1].Done {
				t.Fatalf("write %d: got %+v, %v", at, changes, err)
			}
			for path, was := range files {
				if is := text(t, path); is != was && !strings.Contains(is, theRule+",] }\n") && !strings.HasSuffix(is, "external_nodes = "+theCommand+"\n") {
					t.Errorf("write %d, applied %v: %s is %q", at, after, path, is)
				}
			}
			h.disk = durable.OS
			if _, err := h.Apply(lacking(), theCommand); err != nil {
				t.Errorf("write %d, applied %v: %v", at, after, err)
			}
			applied(t, h, auth)
		}
	}
}
