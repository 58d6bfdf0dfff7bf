package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serverStart bounds Puppet Server's start: 35 s on two idle cores, many
// times that beside compilers and other servers.
const serverStart = 12 * time.Minute

// revokedWithin is the promise to an operator: a terminated node is refused
// in the TLS handshake after that long at the latest.
const revokedWithin = 5 * time.Second

// puppetServer is a Puppet Server: with its CA service disabled, or with its
// own CA where the lab has a folder for one.
type puppetServer struct {
	lab     *lab
	pool    *x509.CertPool // the CA of the server's certificate
	process *process
}

// startPuppetServer starts the server and returns when it is ready. Its
// identity is a bundle that espm provisioned into confdir or, where it has a CA
// of its own, what it makes for itself.
func startPuppetServer(t *testing.T, l *lab) *puppetServer {
	t.Helper()
	renderTree(t, "testdata/server", l.Server, l)
	// What belongs to the installed version rather than to us.
	for _, name := range []string{"conf.d/auth.conf", "conf.d/metrics.conf", "conf.d/web-routes.conf", "services.d/bootstrap.cfg"} {
		check(t, os.WriteFile(filepath.Join(l.Server, "ps", name), readFile(t, l.Host.path(filepath.Join(serverConfig, name))), 0o644))
	}
	for _, dir := range []string{"var", "run", "log", "tmp"} {
		check(t, os.MkdirAll(filepath.Join(l.Server, dir), 0o755))
	}
	uid, gid := l.Host.puppetIDs(t)
	chownTree(t, l.Server, uid, gid)

	s := &puppetServer{lab: l}
	s.start(t, t)
	return s
}

// start starts the server, for the first time or again; it runs until it is
// stopped or the owner ends.
func (s *puppetServer) start(t, owner *testing.T) {
	t.Helper()
	l := s.lab
	cmd := l.Host.asPuppet(t, l.Root, l.Server, "java", "-Xms512m", "-Xmx1g", "-XX:-UsePerfData",
		"-Djava.io.tmpdir="+l.Server+"/tmp",
		"-Djruby.logger.class=com.puppetlabs.jruby_utils.jruby.Slf4jLogger", "-Djruby.lib="+jrubyLib,
		"-cp", puppetJar, "clojure.main", "-m", "puppetlabs.trapperkeeper.main",
		"--config", l.Server+"/ps/conf.d", "--bootstrap-config", l.Server+"/ps/services.d",
		"--restart-file", l.Server+"/run/restart")
	// The barest locale, as a service may have: the ENC's UTF-8 must survive it.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.Server, "LANG=C"}
	s.process = startLogged(owner, cmd, l.Server+"/console.log")

	begin := time.Now()
	defer func() {
		if t.Failed() {
			t.Log(tailFile(l.Server+"/console.log", 20))
			t.Log(s.logTail())
		}
	}()
	waitFor(t, serverStart, "Puppet Server starts", func() error {
		if !s.process.alive() {
			return &goneError{"it ended: " + s.process.cmd.ProcessState.String()}
		}
		if err := s.trust(); err != nil {
			return err
		}
		return s.ask(nil)
	})
	t.Logf("Puppet Server %s ready after %v", l.Host.version(t, "puppetserver"), time.Since(begin).Round(time.Second))
}

// reload has the server read its configuration again, as `systemctl reload` does.
func (s *puppetServer) reload(t *testing.T) {
	t.Helper()
	counter := s.lab.Server + "/run/restart"
	before, begin := string(readFile(t, counter)), time.Now()
	s.process.signal(syscall.SIGHUP)
	waitFor(t, serverStart, "Puppet Server reloads", func() error {
		if !s.process.alive() {
			return &goneError{"it ended: " + s.process.cmd.ProcessState.String()}
		}
		if string(readFile(t, counter)) == before {
			return errors.New("it has not begun to serve again")
		}
		return s.ask(nil)
	})
	t.Logf("Puppet Server reloaded after %v", time.Since(begin).Round(time.Second))
}

// trust reads the CA, which a server with a CA of its own makes at its first start.
func (s *puppetServer) trust() error {
	ca, err := os.ReadFile(s.lab.Server + "/conf/ssl/certs/ca.pem")
	if err != nil {
		return err
	}
	s.pool = x509.NewCertPool()
	if !s.pool.AppendCertsFromPEM(ca) {
		return errors.New("no certificate in the server's ca.pem")
	}
	return nil
}

// ask asks the server's status over TLS, with the agent's certificate if one
// is given; the answer of a server that is ready is "running".
func (s *puppetServer) ask(certificate *tls.Certificate) error {
	config := &tls.Config{RootCAs: s.pool, MinVersion: tls.VersionTLS12}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	// A connection of its own each time: a revocation counts in the handshake.
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	// By name, as agents do: Jetty compares it with the server's certificate.
	response, err := client.Get(fmt.Sprintf("https://localhost:%d/status/v1/simple", s.lab.Port))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if string(body) != "running" {
		return fmt.Errorf("status %d: %.200s", response.StatusCode, body)
	}
	return nil
}

// refuses waits until the server refuses the agent's certificate in the TLS
// handshake.
func (s *puppetServer) refuses(t *testing.T, a agent) {
	t.Helper()
	certificate := a.certificate(t)
	waitFor(t, revokedWithin, "the server refuses "+a.certname, func() error {
		err := s.ask(certificate)
		switch {
		case err == nil:
			return errors.New("it answers")
		// With TLS 1.3 the alert comes in place of the answer.
		case strings.Contains(err.Error(), "remote error: tls: ") && strings.Contains(err.Error(), "certificate"):
			return nil
		default:
			return err
		}
	})
}

func (s *puppetServer) logTail() string {
	return tailFile(s.lab.Server+"/log/puppetserver.log", 30)
}
