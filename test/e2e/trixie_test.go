package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/espm-project/espm/test/need"
)

// trixie is a root of Debian 13, which has Puppet Server 8.7 and puppet-agent
// 8.10. It is made once and kept: two minutes, 600 MB.
var trixie = sync.OnceValues(func() (*host, error) {
	dir := os.Getenv("ESPM_E2E_TRIXIE")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("no place for a root of Debian trixie: %w", err)
		}
		dir = filepath.Join(cache, "espm", "trixie")
	}
	h := &host{name: "trixie", root: dir}
	if err := h.make(); err != nil {
		return nil, fmt.Errorf("no root of Debian trixie in %s: %w", dir, err)
	}
	return h, nil
})

// make makes the root, if it is not there: beside its place, so that what is
// there is complete.
func (h *host) make() error {
	if !filepath.IsAbs(h.root) {
		return errors.New("its path must be absolute")
	}
	if err := os.MkdirAll(filepath.Dir(h.root), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(h.root+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(h.path(puppetJar)); err == nil {
		return nil
	}
	if _, err := need.Installed("debootstrap"); err != nil {
		return err
	}
	part := h.root + ".part"
	if err := os.RemoveAll(part); err != nil { // it was cut short; nothing stays mounted in it
		return err
	}
	if err := makeRoot(part); err != nil {
		return err
	}
	return os.Rename(part, h.root)
}

const installTrixie = `
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
echo '127.0.0.1 localhost' > "$1/etc/hosts"
printf '#!/bin/sh\nexit 101\n' > "$1/usr/sbin/policy-rc.d" # nothing is started
chmod 755 "$1/usr/sbin/policy-rc.d"
chroot "$1" apt-get -q install -y --no-install-recommends puppetserver puppet-agent
chroot "$1" apt-get clean`

func makeRoot(root string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	for _, argv := range [][]string{
		{"debootstrap", "--variant=minbase", "trixie", root},
		{"unshare", "--mount", "sh", "-ec", installTrixie, "install", root},
	} {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LANG=C.UTF-8")
		cmd.SysProcAttr = ownGroup()
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = 5 * time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", argv[0], err, tail(out, 20))
		}
	}
	return nil
}
