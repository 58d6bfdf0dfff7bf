package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/espm-project/espm/test/debian"
)

// serverStart is the limit of Puppet Server's start. A start takes 45 s on two idle cores, and up to ten
// times as long on busy cores.
const serverStart = 10 * time.Minute

//go:embed testdata/puppetserver
var serverConfig embed.FS

// host is a system with Puppet Server: this host, or a root in a folder.
type host struct {
	root    string // "": this host
	version string // the version of the package
}

// findHosts returns the hosts that have a Puppet Server, and the reasons why others are not available.
func findHosts() (hosts []host, missing []string) {
	if os.Geteuid() != 0 {
		return nil, []string{"a Puppet Server needs root here, to run as the user puppet"}
	}
	roots := []string{""}
	if trixie, err := debian.Folder("ESPM_E2E_TRIXIE", "trixie"); err != nil {
		missing = append(missing, err.Error())
	} else {
		roots = append(roots, trixie) // made by test/e2e, with Puppet Server 8
	}
	for _, root := range roots {
		out, err := exec.Command("dpkg-query", "--admindir", filepath.Join(root, "/var/lib/dpkg"), "-W", "-f", "${Version}", "puppetserver").Output()
		if err != nil {
			missing = append(missing, fmt.Sprintf("no puppetserver package in %s/", root))
			continue
		}
		version, _, _ := strings.Cut(string(out), "-")
		hosts = append(hosts, host{root, version})
	}
	return hosts, missing
}

// puppetServer is a Puppet Server with its own CA, in a folder of the lab. The folder has the same path
// inside the host's root.
type puppetServer struct {
	Dir  string
	Port int

	host host
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// startServer starts a Puppet Server whose CA is in dir/ca, and returns when the server is ready.
func (h host) startServer(ctx context.Context, dir string) (*puppetServer, error) {
	s := &puppetServer{Dir: dir, host: h, done: make(chan struct{})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.Port = listener.Addr().(*net.TCPAddr).Port
	if err := errors.Join(listener.Close(), s.configure()); err != nil {
		return nil, err
	}
	if err := s.launch(); err != nil {
		return nil, err
	}
	if err := s.await(ctx); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log/puppetserver.log"))
		console, _ := os.ReadFile(filepath.Join(dir, "console.log"))
		s.stop()
		return nil, fmt.Errorf("puppet server %s: %w\n%s%s", h.version, err, last(console), last(log))
	}
	return s, nil
}

func last(text []byte) []byte { return text[max(0, len(text)-2000):] }

func (s *puppetServer) configure() error {
	for _, dir := range []string{"var", "run", "log", "tmp", "code", "ps", "conf"} {
		if err := os.MkdirAll(filepath.Join(s.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	const from = "testdata/puppetserver"
	err := fs.WalkDir(serverConfig, from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(s.Dir, "ps", strings.TrimPrefix(path, from))
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		text, err := template.ParseFS(serverConfig, path)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := text.Execute(&out, s); err != nil {
			return err
		}
		return os.WriteFile(target, out.Bytes(), 0o644)
	})
	if err != nil {
		return err
	}
	// These files belong to the installed version.
	for _, name := range []string{"conf.d/auth.conf", "conf.d/metrics.conf", "conf.d/web-routes.conf", "services.d/bootstrap.cfg"} {
		text, err := os.ReadFile(filepath.Join(s.host.root, "/etc/puppet/puppetserver", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.Dir, "ps", name), text, 0o644); err != nil {
			return err
		}
	}
	return os.Rename(filepath.Join(s.Dir, "ps/puppet.conf"), filepath.Join(s.Dir, "conf/puppet.conf"))
}

// inRoot mounts the folders that Java needs into a root, and runs the remaining arguments there. The
// mounts end with their mount namespace.
const inRoot = `root=$1 dir=$2
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$dir" "$root$dir"
shift 2
exec chroot "$root" "$@"`

// asPuppet runs the remaining arguments as the user puppet. The process ends with this program.
const asPuppet = `chown -R puppet:puppet "$1"
cd "$1"
shift
exec setpriv --reuid=puppet --regid=puppet --clear-groups --pdeathsig=KILL "$@"`

func (s *puppetServer) launch() error {
	argv := []string{
		"sh", "-ec", asPuppet, "puppet", s.Dir, "java", "-Xms1g", "-Xmx1g", "-XX:-UsePerfData", "-Djava.io.tmpdir=" + s.Dir + "/tmp",
		"-Djruby.logger.class=com.puppetlabs.jruby_utils.jruby.Slf4jLogger", "-Djruby.lib=/usr/share/jruby/lib",
		"-cp", "/usr/share/puppetserver/puppetserver.jar", "clojure.main", "-m", "puppetlabs.trapperkeeper.main",
		"--config", s.Dir + "/ps/conf.d", "--bootstrap-config", s.Dir + "/ps/services.d", "--restart-file", s.Dir + "/run/restart",
	}
	if root := s.host.root; root != "" {
		if err := os.MkdirAll(filepath.Join(root, s.Dir), 0o755); err != nil {
			return err
		}
		argv = append([]string{"unshare", "--mount", "sh", "-ec", inRoot, "root", root, s.Dir}, argv...)
	}
	s.cmd = exec.Command(argv[0], argv[1:]...)
	console, err := os.Create(filepath.Join(s.Dir, "console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	s.cmd.Stdout, s.cmd.Stderr = console, console
	s.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.Dir, "LANG=C"}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.done)
	}()
	return nil
}

// await waits until the server's status is running.
func (s *puppetServer) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serverStart)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.running(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.done:
			return errors.New("it ended: " + s.cmd.ProcessState.String())
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (s *puppetServer) running(ctx context.Context) error {
	client, err := s.client(1)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+"/status/v1/simple", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "running" {
		return fmt.Errorf("%s %.100s: %w", resp.Status, body, err)
	}
	return nil
}

func (s *puppetServer) url() string { return fmt.Sprintf("https://localhost:%d", s.Port) }

// files returns the paths of the server's certificate, its key and its CA.
func (s *puppetServer) files() (certificate, key, trust string) {
	ssl := filepath.Join(s.Dir, "conf/ssl")
	return ssl + "/certs/puppet.pem", ssl + "/private_keys/puppet.pem", ssl + "/certs/ca.pem"
}

// client returns a client that authenticates with the server's own certificate. client keeps a connection
// for each caller.
func (s *puppetServer) client(callers int) (*http.Client, error) {
	certificate, key, trust := s.files()
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(trust)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("%s: no certificate", trust)
	}
	return &http.Client{Timeout: 10 * time.Minute, Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: callers,
	}}, nil
}

// stop kills the server. A benchmark needs no clean shutdown.
func (s *puppetServer) stop() error {
	err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.done
	if s.host.root != "" { // the mount point of the server's folder
		at := filepath.Join(s.host.root, s.Dir)
		err = errors.Join(err, os.Remove(at), os.Remove(filepath.Dir(at)))
	}
	return err
}
