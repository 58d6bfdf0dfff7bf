package faults

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/test/testbed"
)

// ordinary restarts a daemon of root as another user, as file modes do not restrict root.
func (s *server) ordinary(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	const nobody = 65534
	s.end(t, syscall.SIGTERM)
	text, err := os.ReadFile(s.cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Path = filepath.Join(s.run, "espm") // the test's own folder is closed to others
	if err := os.WriteFile(s.cmd.Path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{s.run, s.store} {
		walk(t, dir, func(path string, _ fs.FileInfo) error { return os.Lchown(path, nobody, nobody) })
	}
	s.as = &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true}
	s.start(t)
}

func walk(t *testing.T, dir string, do func(path string, info fs.FileInfo) error) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info fs.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return do(path, info)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// With a CA folder that can't be written, a terminate is accepted and waits, and a
// provision is refused with a retry hint. Both succeed when the folder is writable again.
func TestFolderOfTheCAReadOnly(t *testing.T) {
	dir := testbed.Dir(t)
	s := newServer(t, dir, filepath.Join(dir, "ca"), filepath.Join(dir, "crl.pem"))
	s.ordinary(t)
	h := &holders{}
	h.add(s.provision(t, "kept.test"))
	doomed := s.provision(t, "doomed.test")

	modes := map[string]fs.FileMode{}
	walk(t, s.ca, func(path string, info fs.FileInfo) error {
		modes[path] = info.Mode().Perm()
		return os.Chmod(path, info.Mode().Perm()&^0o222)
	})
	s.pending(t, doomed)
	_, err := s.tryProvision(t.Context(), "refused.test")
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("provision: got %v, want UNAVAILABLE for want of permission", err)
	}
	s.serving(t)
	if log := s.log(t); !strings.Contains(log, "revocations can't be carried out yet") || !strings.Contains(log, "permission denied") {
		t.Errorf("the log does not say that revocations wait, and why:\n%s", log)
	}

	for path, mode := range modes {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	s.revoked(t, "doomed.test", doomed.GetNode().GetUid())
	h.add(s.provision(t, "refused.test"))
	s.settled(t, h)
	s.end(t, syscall.SIGTERM)
}
