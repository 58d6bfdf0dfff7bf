package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tail returns the last n lines.
func tail(text []byte, n int) string {
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func tailFile(path string, n int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return path + ":\n" + tail(text, n)
}

// waitFor polls until the condition holds, and fails the test with its last
// error if that takes longer than the limit.
func waitFor(t *testing.T, limit time.Duration, what string, condition func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(limit / 200)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		if gone := (*goneError)(nil); errors.As(err, &gone) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-deadline:
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		case <-tick.C:
		}
	}
}

// goneError ends a wait early: what was waited for can't come any more.
type goneError struct{ reason string }

func (e *goneError) Error() string { return e.reason }

// result is a command that has ended.
type result struct {
	stdout, stderr string
	code           int // -1: killed
	took           time.Duration
}

// run runs a command to its end. It and its children are killed at the limit,
// which fails the test.
func run(t *testing.T, limit time.Duration, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	p, err := launch(cmd)
	check(t, err)
	overdue := !p.endsWithin(limit)
	if overdue {
		p.signal(syscall.SIGKILL)
		<-p.done
	}
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode(), time.Since(begin)}
	if overdue {
		t.Fatalf("%v: killed after %v\n%s%s", cmd.Args, limit, r.stdout, r.stderr)
	}
	return r
}

// process is a command that runs in its own process group.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and been waited for
}

func launch(cmd *exec.Cmd) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = ownGroup()
	}
	// A grandchild that keeps the output open must not keep the test waiting.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // the exit code is in ProcessState
	}()
	return p, nil
}

// startLogged starts a command that runs in the background until it is
// stopped, or the test ends; its output is appended to the log.
func startLogged(t *testing.T, cmd *exec.Cmd, logPath string) *process {
	t.Helper()
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(t, err)
	defer log.Close() // the child has its own copy
	cmd.Stdout, cmd.Stderr = log, log
	p, err := launch(cmd)
	check(t, err)
	t.Cleanup(func() { p.stop(10 * time.Second) })
	return p
}

func (p *process) signal(sig syscall.Signal) {
	// The group: children go with it.
	_ = syscall.Kill(-p.cmd.Process.Pid, sig)
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) endsWithin(limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// stop asks the process to end, kills it if it has not done so within the
// grace, and returns its exit code (-1: by a signal).
func (p *process) stop(grace time.Duration) int {
	if p.alive() {
		p.signal(syscall.SIGTERM)
		if !p.endsWithin(grace) {
			p.kill()
		}
	}
	return p.cmd.ProcessState.ExitCode()
}

// kill is kill -9.
func (p *process) kill() {
	if p.alive() {
		p.signal(syscall.SIGKILL)
		<-p.done
	}
}

// ownGroup puts a child into its own process group, and has it killed should
// the test binary die without cleaning up (a panic, a test timeout).
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// asUser is ownGroup as another user, without supplementary groups.
func asUser(uid, gid int) *syscall.SysProcAttr {
	attr := ownGroup()
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attr
}
