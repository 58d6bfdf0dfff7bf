package pkgtest

import (
	"bytes"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The life of a machine, from before the first installation to after the removal. Of Puppet, it has only
// the user.
func TestLife(t *testing.T) {
	m := newMachine(t)
	m.does("useradd --system --user-group --no-create-home puppet")
	m.does("useradd --system --user-group --no-create-home stranger")
	before := m.files()

	m.install(first(t).deb)
	m.says("espm version | cut -d' ' -f1-5", "espm version 1.0.0, commit "+commit+",")
	m.says("id --name --groups espm", "espm puppet")
	m.says("getent passwd espm | cut -d: -f6-", "/var/lib/espm:/usr/sbin/nologin")
	m.says("stat -c '%U:%G %a' /etc/espm /var/lib/espm /run/espm", "root:root 755\nespm:espm 755\nespm:espm 755")
	m.says("readlink /etc/systemd/system/multi-user.target.wants/espm.service", "/lib/systemd/system/espm.service")

	m.setUp(t)
	d := m.serve(t)
	m.use(t)

	config := m.does("cat /etc/espm/espm.yaml")
	m.install(built(t, source, "1.0.1").deb)
	m.says("espm version | cut -d' ' -f3", "1.0.1,")
	m.says("cat /etc/espm/espm.yaml", config)
	m.says("espm node list | tail -n +2 | cut -d' ' -f1", "web1.test") // of the daemon that is still there
	d.stop(t)
	m.does("setpriv --reuid puppet --regid puppet --init-groups espm-enc web1.test") // of the store
	d = m.serve(t)
	m.says("espm node list | tail -n +2 | cut -d' ' -f1", "web1.test")
	d.stop(t)

	data := m.does("find /etc/espm /var/lib/espm -type f | sort | xargs sha256sum")
	m.dpkg("--remove espm")
	m.says("find /etc/espm /var/lib/espm -type f | sort | xargs sha256sum", data)
	if out, err := m.try("ls /usr/bin/espm* /usr/lib/systemd/system/espm.service"); err == nil || strings.Count(out, "No such file") != 2 {
		t.Errorf("after the removal: %v, %s", err, out)
	}
	m.install(first(t).deb) // a downgrade
	d = m.serve(t)
	m.says("espm node list | tail -n +2 | cut -d' ' -f1", "web1.test")
	d.stop(t)

	m.dpkg("--purge espm")
	m.says("dpkg-query --show --showformat '${db:Status-Abbrev}' espm 2>&1 || true", "dpkg-query: no packages found matching espm")
	if after := m.files(); !slices.Equal(after, before) {
		t.Errorf("left behind, or missing: %v", diff(before, after))
	}
}

// If Puppet has a CA, that stays the CA unless the operator chooses otherwise. Else init uses Puppet's settings.
func TestInitLooksForPuppet(t *testing.T) {
	m := newMachine(t)
	m.install(first(t).deb)
	m.does("useradd --system --user-group --no-create-home puppet")
	m.does(`cat >/usr/bin/puppet <<'END'
#!/bin/sh
for s in certname=server.test serverport=8140 ca_server=server.test ca_port=8140 cacert=/ca.pem group=puppet hostcert=/no \
	hostprivkey=/no localcacert=/no config=/etc/puppet/puppet.conf node_terminus=plain external_nodes=none; do
	echo "${s%%=*} = ${s#*=}"
done
END
chmod 755 /usr/bin/puppet; touch /ca.pem`)
	if out, err := m.try("espm init --no-check"); err == nil || !strings.Contains(out, "Puppet Server keeps its CA, /ca.pem") {
		t.Errorf("beside a CA, whose files can't be read: %v, %s", err, out)
	}
	m.says("ls /etc/espm", "")
	m.does("rm /ca.pem; espm init --ca-key ec-p256")
	m.says("grep -E '^  (server|group):' /etc/espm/espm.yaml | tr -d ' '", "group:puppet\nserver:server.test")
	m.does("touch /ca.pem; espm init") // existing files stay
	m.says("grep -c directory: /etc/espm/espm.yaml", "1")
}

// A removal gives Puppet's files back as they were. Where that fails, espm stays installed and says why.
func TestRemoveUndoes(t *testing.T) {
	m := newMachine(t)
	m.install(first(t).deb)
	m.does("useradd --system --user-group --no-create-home puppet")
	m.does(`mkdir -p /etc/puppet; printf '[main]\nx = 1\n' >/etc/puppet/puppet.conf; cp /etc/puppet/puppet.conf /root/was
cat >/usr/bin/puppet <<'END'
#!/bin/sh
for s in certname=server.test serverport=8140 ca_server=server.test ca_port=8140 cacert=/ca.pem group=puppet hostcert=/no \
	hostprivkey=/no localcacert=/no config=/etc/puppet/puppet.conf node_terminus=plain external_nodes=none; do
	echo "${s%%=*} = ${s#*=}"
done
END
chmod 755 /usr/bin/puppet; espm init --ca-key ec-p256 --apply`)
	m.says("grep -c /usr/bin/espm-enc /etc/puppet/puppet.conf", "1")
	m.does("mv /usr/bin/puppet /usr/bin/puppet.away; printf '#!/bin/sh\nexit 1\n' >/usr/bin/puppet; chmod 755 /usr/bin/puppet")
	if out, err := m.try("dpkg --purge espm"); err == nil || !strings.Contains(out, "espm is not removed") || !strings.Contains(out, "puppet config print") {
		t.Errorf("beside a Puppet that does not answer: %v, %s", err, out)
	}
	m.does("espm version; mv /usr/bin/puppet.away /usr/bin/puppet")
	m.dpkg("--purge espm")
	m.says("cmp /root/was /etc/puppet/puppet.conf && ls /usr/bin/espm* 2>/dev/null || true", "")
}

// Root makes the store, the configuration and the CA. They belong to the daemon's user.
func (m *machine) setUp(t *testing.T) {
	t.Helper()
	out := m.does("espm init --certname puppet.test --ca-key ec-p256")
	if !strings.Contains(out, "espm serve --config '/etc/espm/espm.yaml'") {
		t.Errorf("init says: %s", out)
	}
	m.says("stat -c '%U:%G' /etc/espm/espm.yaml /var/lib/espm/espm.db /var/lib/espm/ca /var/lib/espm/ca/ca_key.pem",
		"root:root\nespm:espm\nespm:espm\nespm:espm")
	m.does("sed -i 's/# group: puppet/group: puppet/' /etc/espm/espm.yaml")
}

// use provisions, uses and terminates a node.
func (m *machine) use(t *testing.T) {
	t.Helper()
	m.says("stat -c '%U:%G %a' /run/espm/espm.sock /run/espm/enc.sock /var/lib/espm/espm.db",
		"espm:espm 660\nespm:puppet 660\nespm:puppet 640")
	m.does("cd /root; espm node provision web1.test --parameter role='\"web\"' --out web1; espm node provision web2.test --out web2")
	m.does("test -s /root/web1/ssl/private_keys/web1.test.pem; rm -r /root/web1 /root/web2")
	enc := "setpriv --reuid puppet --regid puppet --init-groups espm-enc web1.test"
	if out := m.does(enc); !strings.Contains(out, `"role": "web"`) {
		t.Errorf("%s: got %s", enc, out)
	}
	stranger := "setpriv --reuid stranger --regid stranger --init-groups "
	if out, err := m.try(stranger + "espm-enc web1.test"); err == nil || !strings.Contains(out, "enc.group") {
		t.Errorf("a stranger asks what a node is: %v, %s", err, out)
	}
	if out, err := m.try(stranger + "espm node list"); err == nil || !strings.Contains(out, "this user may not use") {
		t.Errorf("a stranger uses the API: %v, %s", err, out)
	}
	m.says("espm doctor | cut -d' ' -f1 | sort -u", "ok")
	m.does("chmod o+r /var/lib/espm/espm.db")
	if out, err := m.try("espm doctor"); err == nil || !strings.Contains(out, "chmod ") {
		t.Errorf("the doctor of a store that everybody reads: %v, %s", err, out)
	}
	m.does("chmod o-r /var/lib/espm/espm.db")
	m.does("espm node terminate web2.test --wait 60s")
	if out := m.does("espm cert list"); strings.Count(out, "revoked") != 1 {
		t.Errorf("after one terminate: %s", out)
	}
}

// serving is a daemon that is started like the unit starts it.
type serving struct {
	cmd     *exec.Cmd
	logs    bytes.Buffer
	manager *net.UnixConn
}

func (m *machine) serve(t *testing.T) *serving {
	t.Helper()
	path := m.path("run/notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	check(t, err)
	check(t, os.Chmod(path, 0o777))
	s := &serving{manager: manager}
	s.cmd = m.command("setpriv", "--reuid", "espm", "--regid", "espm", "--init-groups", "--no-new-privs", "--bounding-set=-all", "espm", "serve")
	s.cmd.Env = append(s.cmd.Env, "NOTIFY_SOCKET=/run/notify", "WATCHDOG_USEC=6000000000")
	s.cmd.Stdout, s.cmd.Stderr = &s.logs, &s.logs
	check(t, s.cmd.Start())
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			check(t, s.cmd.Process.Kill())
			_ = s.cmd.Wait()
		}
	})
	s.hears(t, "READY=1")
	s.hears(t, "WATCHDOG=1")
	// No debugger of its user and no core dump can read the keys in its memory. The owner of its files in /proc shows that.
	info, err := os.Stat(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "environ"))
	check(t, err)
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("the daemon's memory is open to user %d", uid)
	}
	return s
}

// hears waits for a message to the service manager.
func (s *serving) hears(t *testing.T, want string) {
	t.Helper()
	check(t, s.manager.SetReadDeadline(time.Now().Add(time.Minute)))
	b := make([]byte, 100)
	n, err := s.manager.Read(b)
	if err != nil || string(b[:n]) != want {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		t.Fatalf("the service manager hears %q, %v, want %q\n%s", b[:n], err, want, &s.logs)
	}
}

func (s *serving) stop(t *testing.T) {
	t.Helper()
	check(t, s.cmd.Process.Signal(syscall.SIGTERM))
	s.hears(t, "STOPPING=1")
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v\n%s", err, &s.logs)
	}
	check(t, s.manager.Close())
	check(t, os.Remove(s.manager.LocalAddr().String()))
}

// changing are paths that belong to no package: users, logs, dpkg's own records.
var changing = []string{
	"dev", "proc", "root", "run/notify", "tmp", "var/cache", "var/lib/dpkg", "var/log",
	"etc/passwd", "etc/passwd-", "etc/group", "etc/group-", "etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-",
	"etc/.pwd.lock", "etc/subuid", "etc/subuid-", "etc/subgid", "etc/subgid-",
}

// files returns the names of all files except changing ones.
func (m *machine) files() (all []string) {
	m.t.Helper()
	check(m.t, filepath.WalkDir(m.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(m.root, path)
		if slices.Contains(changing, name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		all = append(all, name)
		return err
	}))
	return all
}

func diff(before, after []string) (differ []string) {
	for _, name := range after {
		if !slices.Contains(before, name) {
			differ = append(differ, "+"+name)
		}
	}
	for _, name := range before {
		if !slices.Contains(after, name) {
			differ = append(differ, "-"+name)
		}
	}
	return differ
}
