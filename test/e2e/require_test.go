package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"sync"
	"testing"

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

// havePuppet says what is missing to run a real Puppet Server and agent.
// test/prepare installs it.
var havePuppet = sync.OnceValue(func() error {
	if testing.Short() && !need.All() {
		return errors.New("-short leaves out the real Puppet Server")
	}
	if os.Geteuid() != 0 {
		return errors.New("a real Puppet Server needs root here, to run as the user puppet")
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
