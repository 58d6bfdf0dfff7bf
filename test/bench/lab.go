package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/espm-project/espm/test/health"
)

// lab is a temporary folder with the measured programs.
type lab struct {
	dir string
	bin string
}

func newLab(bin string) (lab, error) {
	dir, err := os.MkdirTemp("", "espm-bench-")
	if err != nil {
		return lab{}, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the user puppet must be able to enter the folder
		return lab{}, err
	}
	l := lab{dir: dir, bin: bin}
	for _, name := range []string{"espm", "espm-enc"} {
		if err := l.install(filepath.Join(bin, name)); err != nil {
			l.remove()
			return lab{}, fmt.Errorf("%w (run `make build`)", err)
		}
	}
	return l, nil
}

func (l lab) remove() { os.RemoveAll(l.dir) }

func (l lab) path(name string) string { return filepath.Join(l.dir, name) }

// install copies a program into the lab. The copy is one write, as by a package manager. The linker writes
// a file in small pieces, which stay small in the page cache. Such a file takes up to 10 % longer to
// start.
func (l lab) install(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(l.path(filepath.Base(path)), text, 0o755)
}

// build compiles one of the Go programs in test/bench. Like espm-enc, the program is static.
func (l lab) build(ctx context.Context, name string) error {
	out := l.path("build-" + name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(out, name), "./test/bench/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", name, err, text)
	}
	return l.install(filepath.Join(out, name))
}

// daemon is an `espm serve` with its own folder.
type daemon struct {
	dir string
	cmd *exec.Cmd
}

// initialize makes the folder of a daemon with espm init.
func (l lab) initialize(ctx context.Context, name string) (*daemon, error) {
	d := l.daemon(l.path(name))
	out, err := exec.CommandContext(ctx, l.path("espm"), "init", "--dir", d.dir, "--certname", "puppet.example.com", "--ca-key", "ec-p256").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("espm init: %w\n%s", err, out)
	}
	return d, nil
}

// daemon returns a daemon that is not yet running. initialize has made the folder.
func (l lab) daemon(dir string) *daemon {
	return &daemon{dir: dir, cmd: exec.Command(l.path("espm"), "serve", "--config", filepath.Join(dir, "espm.yaml"))}
}

// beside starts a daemon whose authority is a Puppet Server.
func (l lab) beside(ctx context.Context, s *puppetServer) (*daemon, error) {
	d := &daemon{dir: filepath.Join(s.Dir, "espm")}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, err
	}
	certificate, theirs, trust := s.files()
	// The daemon gets a copy of the key. Puppet Server makes its own key readable for its group. If Puppet
	// Server runs in another root, that group id may be any group on this host.
	text, err := os.ReadFile(theirs)
	if err != nil {
		return nil, err
	}
	key := filepath.Join(d.dir, "client_key.pem")
	if err := os.WriteFile(key, text, 0o600); err != nil {
		return nil, err
	}
	path := filepath.Join(d.dir, "espm.yaml")
	config := fmt.Sprintf("store: {path: espm.db}\nlisten: unix://%s\nenc: {socket: run/enc.sock}\npuppet: {server: localhost, port: %d}\n"+
		"authority: {puppetserver: {url: %q, certificate: %q, key: %q, ca: %q}}\n",
		filepath.Join(d.dir, "run/espm.sock"), s.Port, s.url(), certificate, key, trust)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, l.path("espm"), "init", "--dir", d.dir, "--certname", "puppet").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("espm init: %w\n%s", err, out)
	}
	d.cmd = exec.Command(l.path("espm"), "serve", "--config", path)
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

func (d *daemon) store() string   { return filepath.Join(d.dir, "espm.db") }
func (d *daemon) socket() string  { return filepath.Join(d.dir, "run", "enc.sock") }
func (d *daemon) address() string { return "unix://" + filepath.Join(d.dir, "run", "espm.sock") }

// start starts the daemon, and returns when the daemon serves.
func (d *daemon) start(ctx context.Context) error {
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd.Stderr = log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := d.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := health.Serves(ctx, conn); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("espm serve: %w\n%s", err, text)
	}
	return nil
}

func (d *daemon) dial() (*grpc.ClientConn, error) {
	// The default backoff of gRPC is one second if the socket does not exist yet. A start takes less.
	soon := backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond}
	return grpc.NewClient(d.address(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: time.Second}))
}

// stop stops the daemon, if it was started.
func (d *daemon) stop() error {
	if d.cmd.Process == nil {
		return nil
	}
	return errors.Join(d.cmd.Process.Signal(syscall.SIGTERM), d.cmd.Wait())
}
