// Package controlplane runs the examples of docs/control-plane.md against a daemon. The
// cloud is a script that stores its input.
package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/espm-project/espm/test/need"
	"github.com/espm-project/espm/test/testbed"
)

const examples = "../../docs/examples"

// cloud stores user data by name. A test can set it to have no room.
const cloud = `#!/bin/sh
case $1 in
create) [ "${LAUNCH:-}" != fails ] && cp "$4" "$CLOUD/$2" ;;
delete) rm -f "$CLOUD/$2" ;;
esac
`

type site struct {
	dir, bin string
	env      []string
	daemon   *exec.Cmd
}

func newSite(t *testing.T) *site {
	t.Helper()
	for _, tool := range []string{"jq", "openssl"} {
		need.Program(t, tool)
	}
	dir := testbed.Dir(t)
	s := &site{dir: dir, bin: testbed.Build(t, "cmd/espm", "docs/examples/console")}
	for _, sub := range []string{"cloud", "work"} {
		check(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	check(t, os.WriteFile(filepath.Join(s.bin, "cloud"), []byte(cloud), 0o755))
	s.env = append(os.Environ(), "PATH="+s.bin+":"+os.Getenv("PATH"), "ESPM_ADDRESS=unix://"+s.socket(), "CLOUD="+filepath.Join(dir, "cloud"), "PAUSE=0.01")
	s.run(t, "espm", "init", "--dir", filepath.Join(dir, "d"), "--certname", "puppet.test", "--ca-key", "ec-p256").is(t, 0)
	return s
}

func (s *site) socket() string { return filepath.Join(s.dir, "d/run/espm.sock") }

// serve starts the daemon and returns when it answers; it runs until the test ends.
func (s *site) serve(t *testing.T) {
	t.Helper()
	s.daemon = exec.Command(filepath.Join(s.bin, "espm"), "serve", "--config", filepath.Join(s.dir, "d/espm.yaml"))
	var log bytes.Buffer
	s.daemon.Stderr = &log
	check(t, s.daemon.Start())
	t.Cleanup(func() {
		check(t, s.daemon.Process.Signal(syscall.SIGTERM))
		if err := s.daemon.Wait(); err != nil {
			t.Errorf("espm serve: %v\n%s", err, log.String())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if s.run(t, "espm", "node", "list").code == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("espm does not serve")
		}
	}
	s.run(t, "espm", "group", "create", "fleet").is(t, 0)
}

type outcome struct {
	code           int
	stdout, stderr string
}

func (s *site) run(t *testing.T, argv ...string) outcome {
	t.Helper()
	if !strings.Contains(argv[0], "/") {
		if own := filepath.Join(s.bin, argv[0]); exists(own) {
			argv[0] = own
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = filepath.Join(s.dir, "work"), s.env, time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (o outcome) is(t *testing.T, code int) outcome {
	t.Helper()
	if o.code != code {
		t.Fatalf("exit %d, want %d\n%s%s", o.code, code, o.stdout, o.stderr)
	}
	return o
}

// with returns a site whose commands have another variable.
func (s *site) with(variable ...string) *site {
	other := *s
	other.env = append(append([]string{}, s.env...), variable...)
	return &other
}

// state returns the state of a registration.
func (s *site) state(t *testing.T, name, uid string) string {
	t.Helper()
	var n struct{ Node struct{ State string } }
	check(t, json.Unmarshal([]byte(s.run(t, "espm", "node", "show", name, "--uid", uid, "-o", "json").is(t, 0).stdout), &n))
	return n.Node.State
}

func (s *site) expectState(t *testing.T, name, uid, want string) {
	t.Helper()
	if got := s.state(t, name, uid); got != "NODE_STATE_"+want {
		t.Errorf("%s %s is %s, want %s", name, uid, got, want)
	}
}

func example(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(examples, name))
	check(t, err)
	return path
}

func (s *site) launch(t *testing.T, name, file string) outcome {
	t.Helper()
	return s.run(t, "sh", example(t, "launch.sh"), name, file)
}

func TestShell(t *testing.T) {
	s := newSite(t)

	// The daemon does not answer: the client gives up after some tries, and succeeds later with the same id.
	if o := s.launch(t, "web1.test", "data").is(t, 1); !strings.Contains(o.stderr, "no daemon answers") {
		t.Errorf("%s", o.stderr)
	}
	if !exists(filepath.Join(s.dir, "work/data.request-id")) {
		t.Error("the request id is not kept")
	}
	s.serve(t)
	name, uid := split(t, s.launch(t, "web1.test", "data").is(t, 0).stdout)
	if name != "web1.test" {
		t.Errorf("is %s", name)
	}
	s.expectState(t, name, uid, "PROVISIONED")
	if data, err := os.ReadFile(filepath.Join(s.dir, "cloud/web1.test")); err != nil || !bytes.Contains(data, []byte("PRIVATE KEY")) {
		t.Errorf("the cloud got %q, %v", data, err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "work/data*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// The name is taken: the client makes another name of it.
	second, secondUID := split(t, s.launch(t, "web1.test", "data").is(t, 0).stdout)
	if second != "web1-2.test" {
		t.Errorf("is %s", second)
	}

	// A second terminate does nothing.
	for range 2 {
		if o := s.run(t, "sh", example(t, "terminate.sh"), name, uid).is(t, 0); !strings.Contains(o.stdout, "revoked") {
			t.Error(o.stdout)
		}
	}
	s.expectState(t, name, uid, "TERMINATED")
	s.expectState(t, second, secondUID, "PROVISIONED")

	// If the cloud has no room, no node stays.
	s.with("LAUNCH=fails").launch(t, "web9.test", "data").is(t, 1)
	s.run(t, "espm", "node", "show", "web9.test").is(t, 3)

	// A permanent error is not retried.
	if o := s.launch(t, "WEB.test", "data").is(t, 1); !strings.Contains(o.stderr, "WEB.test") {
		t.Errorf("%s", o.stderr)
	}
}

func split(t *testing.T, line string) (name, uid string) {
	t.Helper()
	fields := strings.Fields(line)
	if len(fields) != 2 {
		t.Fatalf("printed %q", line)
	}
	return fields[0], fields[1]
}

// Terraform itself is not run: its commands are, in its order, with the variables that it sets.
func TestTerraform(t *testing.T) {
	s := newSite(t)
	s.serve(t)
	text, err := os.ReadFile(example(t, "terraform/main.tf"))
	check(t, err)
	commands := regexp.MustCompile(`(?s)command = <<-EOT\n(.*?)\n *EOT\n`).FindAllStringSubmatch(string(text), -1)
	if len(commands) != 2 {
		t.Fatalf("%d commands in main.tf, want 2", len(commands))
	}
	create, destroy := commands[0][1], commands[1][1]
	s.env = append(s.env, "CERTNAME=tf.test", "USER_DATA=tf.user-data", "ID=0d9c")
	data := filepath.Join(s.dir, "work/tf.user-data")

	s.run(t, "sh", "-c", create).is(t, 0)
	first, err := os.ReadFile(data)
	check(t, err)
	// A second apply after a failure returns the same node and the same bundle.
	s.run(t, "sh", "-c", create).is(t, 0)
	if second, err := os.ReadFile(data); err != nil || !bytes.Equal(first, second) {
		t.Errorf("another bundle: %v", err)
	}
	// Another resource of the same name gets an error.
	if o := s.with("ID=ffff", "USER_DATA=other").run(t, "sh", "-c", create).is(t, 4); !strings.Contains(o.stderr, "NODE_EXISTS") {
		t.Error(o.stderr)
	}

	var n struct{ Node struct{ UID string } }
	kept, err := os.ReadFile(data + ".json")
	check(t, err)
	check(t, json.Unmarshal(kept, &n))
	s.run(t, "sh", "-c", destroy).is(t, 0)
	s.expectState(t, "tf.test", n.Node.UID, "TERMINATED")
	s.run(t, "sh", "-c", destroy).is(t, 0)
	if exists(data) || exists(data+".json") {
		t.Error("the user data is still there")
	}
}

func TestConsole(t *testing.T) {
	s := newSite(t)
	s.serve(t)
	s.run(t, "espm", "node", "register", "app.test").is(t, 0)
	want := regexp.MustCompile(`^provisioned app-2\.test \S+\nlaunched app-2\.test with a key: true to ask https://puppet\.test:8140\nterminated app-2\.test REVOCATION_STATE_REVOKED on CRL \d+\n$`)
	if o := s.run(t, "console", s.socket(), "app.test").is(t, 0); !want.MatchString(o.stdout) {
		t.Errorf("printed %q", o.stdout)
	}
	if o := s.with("LAUNCH=fails").run(t, "console", s.socket(), "free.test").is(t, 1); !strings.Contains(o.stdout, "terminated free.test") || !strings.Contains(o.stderr, "no room") {
		t.Errorf("printed %q, %q", o.stdout, o.stderr)
	}
	s.run(t, "espm", "node", "show", "free.test").is(t, 3)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
