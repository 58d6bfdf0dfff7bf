package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// Where an agent or a server that was not told otherwise reads and writes.
var systemPaths = []string{
	"/etc/hosts", "/etc/puppet", "/etc/puppetlabs", "/etc/facter", "/etc/espm",
	"/var/lib/puppet", "/var/lib/puppetserver", "/var/lib/espm",
	"/var/cache/puppet", "/var/log/puppet", "/var/log/puppetserver",
	"/run/puppet", "/run/puppetserver", "/run/espm", "/opt/puppetlabs", "/root/.puppetlabs",
}

// leaveAlone fails the test if it changes the host's own Puppet or espm.
func leaveAlone(t *testing.T, h *host) {
	t.Helper()
	before := systemState(t, h)
	t.Cleanup(func() {
		after := systemState(t, h)
		for path, state := range after {
			if before[path] != state {
				t.Errorf("the test changed %s: %q, was %q", path, state, before[path])
			}
		}
		maps.DeleteFunc(before, func(path, _ string) bool { return after[path] != "" })
		for path := range before {
			t.Errorf("the test removed %s", path)
		}
	})
}

func systemState(t *testing.T, h *host) map[string]string {
	t.Helper()
	state := make(map[string]string)
	for _, root := range systemPaths {
		err := filepath.WalkDir(h.path(root), func(path string, entry fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			state[path] = fmt.Sprintf("%v %d bytes %v", info.Mode(), info.Size(), info.ModTime())
			return nil
		})
		check(t, err)
	}
	return state
}
