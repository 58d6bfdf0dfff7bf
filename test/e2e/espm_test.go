package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// daemon is `espm serve` in the lab, and the admin's shell beside it.
type daemon struct {
	lab     *lab
	test    *testing.T // outlives the subtests: the daemon runs until it ends
	process *process
}

// initEspm runs espm init, which makes a store and, unless Puppet Server has the CA, a new
// CA.
func initEspm(t *testing.T, l *lab) *daemon {
	t.Helper()
	d := &daemon{lab: l, test: t}
	if l.CA != "" {
		d.configure(t, "fail", "")
	}
	d.espm(t, "init", "--dir", l.Dir, "--certname", "puppet")
	return d
}

// serve writes the configuration and starts the daemon. It returns when the
// daemon answers.
func (d *daemon) serve(t *testing.T, unknownNodes, otherENC string) {
	t.Helper()
	config := d.configure(t, unknownNodes, otherENC)
	log := filepath.Join(d.lab.Root, "espm.log")
	d.process = startLogged(d.test, exec.Command(filepath.Join(d.lab.Bin, "espm"), "serve", "--config", config), log)
	waitFor(t, 30*time.Second, "espm serves", func() error {
		if !d.process.alive() {
			return &goneError{"it ended: " + d.process.cmd.ProcessState.String() + "\n" + tailFile(log, 20)}
		}
		if r := d.try(t, "node", "list"); r.code != 0 {
			return errors.New(strings.TrimSpace(r.stderr) + "\n" + tailFile(log, 20))
		}
		return nil
	})
}

// configure writes the configuration and returns its path.
func (d *daemon) configure(t *testing.T, unknownNodes, otherENC string) string {
	t.Helper()
	config := filepath.Join(d.lab.Dir, "espm.yaml")
	render(t, "testdata/espm.yaml", config, struct {
		*lab
		UnknownNodes, OtherENC string
	}{d.lab, unknownNodes, otherENC})
	return config
}

// kill is kill -9.
func (d *daemon) kill() { d.process.kill() }

// stop stops the daemon like systemd, and checks that it ends in time and in order.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if code := d.process.stop(10 * time.Second); code != 0 {
		t.Fatalf("espm serve: exit %d on SIGTERM\n%s", code, tailFile(filepath.Join(d.lab.Root, "espm.log"), 20))
	}
}

// try runs an espm command against the daemon.
func (d *daemon) try(t *testing.T, args ...string) result {
	t.Helper()
	cmd := exec.Command(filepath.Join(d.lab.Bin, "espm"), args...)
	cmd.Env = append(os.Environ(),
		"ESPM_ADDRESS=unix://"+filepath.Join(d.lab.Dir, "run/espm.sock"),
		"ESPM_ENC_SOCKET="+filepath.Join(d.lab.Dir, "run/enc.sock"),
		"ESPM_DB="+filepath.Join(d.lab.Dir, "espm.db"))
	return run(t, 150*time.Second, cmd) // an issue may take two minutes
}

// espm is try of a command that must succeed; it returns the standard output.
func (d *daemon) espm(t *testing.T, args ...string) string {
	t.Helper()
	r := d.try(t, args...)
	if r.code != 0 {
		t.Fatalf("espm %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// provision provisions a node, with the bundle in a folder of its own. It returns the
// instance that boots with it, and the uid of the registration.
func (d *daemon) provision(t *testing.T, certname string, args ...string) (a agent, uid string) {
	t.Helper()
	parent := filepath.Join(d.lab.Root, "instances")
	check(t, os.MkdirAll(parent, 0o755))
	// A new registration is a new instance, without files of an earlier one.
	dir, err := os.MkdirTemp(parent, certname+"-")
	check(t, err)
	return agent{lab: d.lab, host: d.lab.Host, certname: certname, dir: dir}, d.provisionTo(t, certname, dir, args...)
}

func (d *daemon) provisionTo(t *testing.T, certname, dir string, args ...string) (uid string) {
	t.Helper()
	args = append([]string{"node", "provision", certname, "--out", dir, "-o", "json"}, args...)
	// If the answer of an earlier issue or revocation of the name was lost, espm waits for Puppet Server. That can
	// take longer than a call.
	var r result
	waitFor(t, 5*time.Minute, "provision "+certname, func() error {
		if r = d.try(t, args...); r.code != 0 && strings.Contains(r.stderr, "try again in") {
			return errors.New(r.stderr)
		}
		return nil
	})
	out := r.stdout
	if r.code != 0 {
		t.Fatalf("espm %s: exit %d\n%s%s", strings.Join(args, " "), r.code, out, r.stderr)
	}
	var answer struct {
		Node struct{ Certname, UID string }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Node.Certname != certname || answer.Node.UID == "" {
		t.Fatalf("espm node provision %s -o json: %v\n%s", certname, err, out)
	}
	return answer.Node.UID
}

// enc runs espm-enc as Puppet Server does: as the user puppet.
func (l *lab) enc(t *testing.T, certname string) result {
	t.Helper()
	cmd := l.Host.asPuppet(t, l.Root, "/", append(l.encCommand(), certname)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return run(t, 10*time.Second, cmd)
}

// otherENC installs another classifier where the daemon can run it, and
// returns its path.
func (l *lab) otherENC(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/other-enc")
	check(t, err)
	path := filepath.Join(l.Root, "other-enc")
	check(t, os.WriteFile(path, text, 0o755))
	return path
}

func greeting(text string) string { return fmt.Sprintf(`motd={"greeting":%q}`, text) }
