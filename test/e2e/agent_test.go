package e2e

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What `puppet agent --detailed-exitcodes` means by its exit codes.
const (
	unchanged = 0
	runFailed = 1
	changed   = 2
)

// agent is an instance: the bundle that espm made for it, and a state of its own.
type agent struct {
	lab      *lab
	host     *host
	certname string
	dir      string // its confdir, as `espm node provision --out` wrote it
}

// run is one run of a real agent; everything it writes stays in its folder.
func (a agent) run(t *testing.T) agentRun {
	t.Helper()
	cmd := a.host.command(a.lab.Root, a.dir, "puppet", "agent", "--test", "--color=false",
		"--confdir", a.dir,
		"--vardir", a.dir+"/var", "--rundir", a.dir+"/run", "--logdir", a.dir+"/log",
		"--codedir", a.dir+"/code", "--publicdir", a.dir+"/public")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + a.dir, "LANG=C.UTF-8"}
	r := run(t, 2*time.Minute, cmd)
	t.Logf("puppet agent %s: exit %d after %v", a.certname, r.code, r.took.Round(100*time.Millisecond))
	return agentRun{r, a}
}

// certificate is the agent's client certificate.
func (a agent) certificate(t *testing.T) *tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(a.dir+"/ssl/certs/"+a.certname+".pem", a.dir+"/ssl/private_keys/"+a.certname+".pem")
	check(t, err)
	return &pair
}

// forget removes the files of earlier catalogs, as a new instance has none.
func (a agent) forget(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"site", "motd"} {
		if err := os.Remove(a.applied(kind)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

func (a agent) applied(kind string) string {
	return filepath.Join(a.lab.Applied, a.certname+"."+kind)
}

type agentRun struct {
	result
	agent agent
}

// exits checks the exit code.
func (r agentRun) exits(t *testing.T, code int) agentRun {
	t.Helper()
	if r.code != code {
		t.Fatalf("puppet agent %s: exit %d, want %d\n%s%s\n%s", r.agent.certname, r.code, code, r.stdout, r.stderr,
			tailFile(r.agent.lab.Server+"/log/puppetserver.log", 20))
	}
	return r
}

// says checks that the agent's output has all the texts.
func (r agentRun) says(t *testing.T, texts ...string) agentRun {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("puppet agent %s doesn't say %q:\n%s%s", r.agent.certname, text, r.stdout, r.stderr)
		}
	}
	return r
}

// applied checks the file that a class of the catalog wrote, "" for none.
func (r agentRun) applied(t *testing.T, kind, want string) agentRun {
	t.Helper()
	got, err := os.ReadFile(r.agent.applied(kind))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s applied %s %q, want %q", r.agent.certname, kind, got, want)
	}
	return r
}

// presigned checks that the agent neither requested a certificate nor
// waited for one.
func (r agentRun) presigned(t *testing.T) agentRun {
	t.Helper()
	output := strings.ToLower(r.stdout + r.stderr)
	for _, sign := range []string{"certificate request", "csr", "waiting", "creating a new", "couldn't fetch"} {
		if strings.Contains(output, sign) {
			t.Errorf("puppet agent %s asked for more than its bundle (%q):\n%s", r.agent.certname, sign, output)
		}
	}
	ca := r.agent.lab.CA
	if ca == "" {
		ca = r.agent.lab.Dir + "/ca"
	}
	for _, dir := range []string{r.agent.dir + "/ssl/certificate_requests", ca + "/requests"} {
		// A server that is killed leaves temporary files beside them.
		requests, err := filepath.Glob(filepath.Join(dir, "*.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if len(requests) > 0 {
			t.Errorf("there is a certificate request: %s", requests[0])
		}
	}
	return r
}

func motd(greeting, datacenter string) string {
	return fmt.Sprintf("%s from %s in production\n", greeting, datacenter)
}
