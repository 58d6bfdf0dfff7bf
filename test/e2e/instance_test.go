package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	firstboot "github.com/espm-project/espm/packaging/bootstrap"
)

// instance is a machine that boots for the first time: a root of its own, with this
// machine's /usr, entered in a mount namespace. Its /etc, /var and /opt are its own.
type instance struct {
	lab  *lab
	root string
	path string // its PATH
}

// mountInstance is what an instance's root lacks for mount.
const mountInstance = `mount --rbind /usr "$1/usr"` + mount

// Where an installed agent has its things. The vendor's packages are not installed here: a
// wrapper gives Debian's agent their folders.
const (
	debianConf = "/etc/puppet/puppet.conf"
	vendorConf = "/etc/puppetlabs/puppet/puppet.conf"
	vendorBin  = "/opt/puppetlabs/bin/puppet"

	vendorPuppet = `#!/bin/sh
exec /usr/bin/puppet "$@" --confdir /etc/puppetlabs/puppet --ssldir /etc/puppetlabs/puppet/ssl --vardir /opt/puppetlabs/puppet/cache \
	--logdir /var/log/puppetlabs/puppet --rundir /var/run/puppetlabs --publicdir /opt/puppetlabs/puppet/public
`
)

func newInstance(t *testing.T, l *lab) *instance {
	t.Helper()
	root, err := os.MkdirTemp(l.Root, "instance-")
	check(t, err)
	i := &instance{lab: l, root: root, path: "/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, dir := range []string{"usr", "etc/ssl", "var/lib", "var/log", "opt", "proc", "dev", "tmp", "run", "root"} {
		check(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		check(t, os.Symlink("usr/"+name, filepath.Join(root, name)))
	}
	check(t, os.Symlink("../run", filepath.Join(root, "var/run")))
	for _, name := range []string{"passwd", "group", "ld.so.cache", "ssl/openssl.cnf"} {
		i.write(t, "/etc/"+name, string(readFile(t, "/etc/"+name)), 0o644)
	}
	i.write(t, "/etc/nsswitch.conf", "hosts: files\n", 0o644)
	i.write(t, "/etc/hosts", "127.0.0.1 localhost\n", 0o644)
	i.write(t, "/root/first-boot", string(firstboot.Script), 0o755)
	return i
}

// withImage gives it a puppet.conf to fill.
func (i *instance) withImage(t *testing.T, conf string) *instance {
	t.Helper()
	i.write(t, conf, "[main]\ncertname = ES_NODE_NAME\nserver = ES_PUPPET_MASTER\nserverport = ES_PUPPET_PORT\n", 0o644)
	if conf == vendorConf {
		i.write(t, vendorBin, vendorPuppet, 0o755)
		i.path = filepath.Dir(vendorBin) + ":" + i.path
	}
	return i
}

func (i *instance) write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	path = filepath.Join(i.root, path)
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(text), mode))
}

func (i *instance) read(t *testing.T, path string) string {
	t.Helper()
	return string(readFile(t, filepath.Join(i.root, path)))
}

// run runs a command inside, as root.
func (i *instance) run(t *testing.T, argv ...string) booted {
	t.Helper()
	cmd := enter(mountInstance, i.root, i.lab.Root, "/", argv)
	cmd.Env = []string{"PATH=" + i.path, "HOME=/root", "LANG=C.UTF-8"}
	r := run(t, 3*time.Minute, cmd)
	t.Logf("%s: exit %d after %v", argv[len(argv)-1], r.code, r.took.Round(100*time.Millisecond))
	return booted{r}
}

// boot runs the script for a node with the bundle in its folder.
func (i *instance) boot(t *testing.T, node agent, master string, further ...string) booted {
	t.Helper()
	argv := []string{"sh", "/root/first-boot", "root", node.certname, master,
		node.dir + "/ssl/certs/" + node.certname + ".pem", node.dir + "/ssl/private_keys/" + node.certname + ".pem"}
	return i.run(t, append(argv, further...)...)
}

// trust are the arguments that come after the historical five.
func (a agent) trust() []string { return []string{a.dir + "/ssl/certs/ca.pem", a.dir + "/ssl/crl.pem"} }

type booted struct{ result }

func (b booted) is(t *testing.T, code int, texts ...string) {
	t.Helper()
	if b.code != code {
		t.Fatalf("exit %d, want %d\n%s%s", b.code, code, b.stdout, b.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(b.stdout+b.stderr, text) {
			t.Errorf("doesn't say %q:\n%s%s", text, b.stdout, b.stderr)
		}
	}
}
