// Package debian makes root file systems of Debian with debootstrap, and caches them.
package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/espm-project/espm/test/need"
)

// limit is how long the making of a root may take. It takes about two minutes.
const limit = 15 * time.Minute

// Root returns the Folder with the root of a suite. If the root does not have the file "has", Root makes it
// first: a minimal base, which finish completes unless finish is nil. One process at a
// time makes it, in a temporary folder that is renamed at the end. So a root that exists is complete.
func Root(variable, suite, has string, finish func(ctx context.Context, root string) error) (string, error) {
	dir, err := Folder(variable, suite)
	if err != nil {
		return "", err
	}
	if err := complete(dir, suite, has, finish); err != nil {
		return "", fmt.Errorf("no root of Debian %s in %s: %w", suite, dir, err)
	}
	return dir, nil
}

// Folder returns the path of a suite's root, which may not exist yet: the absolute path in the environment variable,
// or else espm/SUITE in the user's cache folder.
func Folder(variable, suite string) (string, error) {
	dir := os.Getenv(variable)
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no place for a root of Debian %s: %w", suite, err)
		}
		dir = filepath.Join(cache, "espm", suite)
	}
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("%s=%s: must be an absolute path", variable, dir)
	}
	return dir, nil
}

func complete(dir, suite, has string, finish func(context.Context, string) error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, has)); err == nil {
		return nil
	}
	if _, err := need.Installed("debootstrap"); err != nil {
		return err
	}
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil { // it was cut short; nothing stays mounted in it
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := Run(ctx, "debootstrap", "--variant=minbase", suite, part); err != nil {
		return err
	}
	if finish != nil {
		if err := finish(ctx, part); err != nil {
			return err
		}
	}
	return os.Rename(part, dir)
}

// Run runs a command that makes a part of a root. Packages ask no questions. When the context ends, all
// processes of the command end.
func Run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LANG=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out[max(0, len(out)-2000):])
	}
	return nil
}
