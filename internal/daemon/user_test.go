package daemon

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/espm-project/espm/test/need"
)

// nobody is a user that owns nothing.
const nobody = 65534

// runAsNobody starts the daemon of the configuration in dir as another user, and returns what it said.
func runAsNobody(t *testing.T, dir string) (string, error) {
	t.Helper()
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "daemon.test") // where go test puts it only root may look
	if err := os.WriteFile(bin, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), childConfig+"="+filepath.Join(dir, "espm.yaml"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.Output()
	return string(out), err
}

func chownAll(t *testing.T, dir string, but string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() == but {
			return err
		}
		return os.Chown(path, nobody, nobody)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The key belongs to root alone, and the daemon runs as somebody else.
func TestCAKeyOfAnotherUser(t *testing.T) {
	need.Root(t, "become another user")
	dir, _ := trial(t)
	chownAll(t, dir, "ca_key.pem")
	out, err := runAsNobody(t, dir)
	if err == nil || !strings.Contains(out, "cannot read CA key") || !strings.Contains(out, "espm must run as its owner or in its group") {
		t.Errorf("got %v: %s", err, out)
	}
}

// The daemon's user was not put in Puppet's group.
func TestGroupOfOthers(t *testing.T) {
	need.Root(t, "become another user")
	dir, c := trial(t)
	file := filepath.Join(dir, "espm.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(text, []byte("# group: puppet"), []byte("group: root"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	chownAll(t, dir, "")
	out, err := runAsNobody(t, dir)
	if err == nil || !strings.HasPrefix(out, "enc.group: ") || !strings.Contains(out, c.Store.Path) || !strings.Contains(out, "usermod --append --groups root USER") {
		t.Errorf("got %v: %s", err, out)
	}
}
