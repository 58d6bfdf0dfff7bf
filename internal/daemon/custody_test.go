package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/espm-project/espm/test/health"
)

// A store that others could read, or put another in place of, is not opened, nor changed.
func TestOpenStoreIsRefused(t *testing.T) {
	dir, c := trial(t)
	for _, test := range []struct {
		path      string
		mode, was fs.FileMode
		want      string
	}{
		{c.Store.Path, 0o644, 0o640, "store " + c.Store.Path + " is open to everybody (mode 0644); mend it: chmod 0640 " + c.Store.Path},
		{c.Store.Path, 0o602, 0o640, "mend it: chmod 0600 "},
		{dir, 0o757, 0o755, "the store's folder " + dir + " is open to everybody (mode 0757); mend it: chmod 0755 " + dir},
	} {
		if err := os.Chmod(test.path, test.mode); err != nil {
			t.Fatal(err)
		}
		before := revision(t, c)
		if err := Run(t.Context(), c, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
		if after := revision(t, c); after != before {
			t.Errorf("revision %d, then %d", before, after)
		}
		if info, err := os.Stat(test.path); err != nil || info.Mode().Perm() != test.mode {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		if err := os.Chmod(test.path, test.was); err != nil {
			t.Fatal(err)
		}
	}
	_, stop := start(t, c) // once mended
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A daemon that is killed leaves no core, even where its shell asks for one and the Go runtime makes one.
func TestNoCoreDump(t *testing.T) {
	dir, c := trial(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), childConfig+"="+filepath.Join(dir, "espm.yaml"), "GOTRACEBACK=crash")
	control := exec.CommandContext(t.Context(), "sh", "-c", "kill -ABRT $$")
	control.Dir = t.TempDir()
	allowCores(t, func() {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !waitStatus(t, control.Run()).CoreDump() {
			t.Log("this system makes no core dumps of its own")
		}
	})
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	serves(t, c.Listen)

	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil || !regexp.MustCompile(`Max core file size +0 `).Match(limits) {
		t.Errorf("limits: %v\n%s", err, limits)
	}
	if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	if status := waitStatus(t, <-ended); status.CoreDump() || !status.Signaled() {
		t.Errorf("ended with %v, core %v", status, status.CoreDump())
	}
	if cores, err := filepath.Glob(filepath.Join(dir, "core*")); err != nil || len(cores) > 0 {
		t.Errorf("left %v, %v", cores, err)
	}
}

// A limit does not stop a program that core_pattern names; the attribute does.
func TestNotDumpable(t *testing.T) {
	_, c := trial(t)
	start(t, c)
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
		t.Errorf("PR_GET_DUMPABLE: %d, %v", dumpable, err)
	}
}

func waitStatus(t *testing.T, err error) syscall.WaitStatus {
	t.Helper()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatalf("it ended with %v, want a signal", err)
	}
	return exit.Sys().(syscall.WaitStatus)
}

// allowCores lets what do starts dump core.
func allowCores(t *testing.T, do func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: old.Max, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &old); err != nil {
			t.Error(err)
		}
	}()
	do()
}

func serves(t *testing.T, address string) {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := health.Serves(ctx, conn); err != nil {
		t.Fatalf("it does not serve: %v", err)
	}
}
