package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/test/need"
)

// Where Debian's packages put what the test starts or reads.
const (
	puppetJar    = "/usr/share/puppetserver/puppetserver.jar"
	jrubyLib     = "/usr/share/jruby/lib"
	serverConfig = "/etc/puppet/puppetserver"
	puppetUser   = "puppet"
)

// requirePuppet skips the test where no Puppet Server can be had, or fails it
// where one is required.
func requirePuppet(t *testing.T) {
	t.Helper()
	need.This(t, havePuppet())
}

// havePuppet says what is missing to run a real Puppet Server and agent, after
// it has installed them where it may.
var havePuppet = sync.OnceValue(func() error {
	if testing.Short() && !need.All() {
		return errors.New("-short leaves out the real Puppet Server")
	}
	if os.Geteuid() != 0 {
		return errors.New("a real Puppet Server needs root here, to run as the user puppet")
	}
	if missing := missingPiece(); missing != nil {
		if _, err := exec.LookPath("apt-get"); err != nil {
			return fmt.Errorf("%w, and there is no apt-get to install it", missing)
		}
		if err := installPuppet(); err != nil {
			return fmt.Errorf("%w: %w", missing, err)
		}
	}
	if err := missingPiece(); err != nil {
		return err
	}
	return reachable(os.TempDir())
})

func missingPiece() error {
	for _, path := range []string{puppetJar, jrubyLib, serverConfig + "/services.d/bootstrap.cfg"} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("puppetserver of Debian is not installed: %w", err)
		}
	}
	for _, name := range []string{"java", "openssl", "puppet", "ruby"} {
		if _, err := need.Installed(name); err != nil {
			return err
		}
	}
	if _, err := user.Lookup(puppetUser); err != nil {
		return err
	}
	return nil
}

func installPuppet() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"update"},
		{"install", "-y", "--no-install-recommends", "puppetserver", "puppet-agent", "openssl"},
	} {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=120"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, tail(out, 20))
		}
	}
	return nil
}

// reachable says whether other users can get to dir, where the scratch folder
// will be.
func reachable(dir string) error {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("the user puppet can't reach %s: set TMPDIR to a folder it can", dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}
