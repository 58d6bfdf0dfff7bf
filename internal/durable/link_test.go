package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/test/need"
)

// TestTarget: a file that is no link is its own target; links are followed to the file that a reader would open, as the
// kernel follows them.
func TestTarget(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	link := func(text, name string) {
		t.Helper()
		if err := os.Symlink(text, in(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(in("real/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, in("real/file"), "x")
	link(in("real/file"), "absolute")
	link("real/file", "relative")
	link("relative", "twice")
	link("real/new", "dangling")
	link("real/deep", "folder") // from which ".." leads to real, not to dir
	link("../file", "real/deep/up")
	link("folder/../file", "past")
	link("loop", "loop")
	for path, want := range map[string]string{
		"real/file": "real/file", "absent": "absent", "absolute": "real/file", "relative": "real/file", "twice": "real/file",
		"dangling": "real/new", "folder/up": "real/file", "past": "real/file",
	} {
		if got, err := durable.Target(in(path)); got != in(want) || err != nil {
			t.Errorf("%s: %s, %v; want %s", path, got, err, in(want))
		}
	}
	if _, err := durable.Target(in("loop")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	if _, err := durable.Target(in("real/file/x")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	link("nowhere/file", "lost")
	if _, err := durable.Target(in("lost")); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), in("lost")) {
		t.Errorf("a link to a missing folder: %v", err)
	}
}

// TestTargetOfStrangers: a link that another user made, or may replace, is not followed, and what it names is not
// written.
func TestTargetOfStrangers(t *testing.T) {
	need.Root(t, "give a link away")
	dir := t.TempDir()
	secret, link := filepath.Join(dir, "secret"), filepath.Join(dir, "link")
	write(t, secret, "x")
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	refused := func(want string) {
		t.Helper()
		if got, err := durable.Target(link); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), link) {
			t.Errorf("%s, %v; want an error with %q", got, err, want)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	refused("chmod o-w " + dir)
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if got, err := durable.Target(link); err != nil || filepath.Base(got) != "secret" {
		t.Errorf("root's link that nobody else can replace: %s, %v", got, err)
	}
	if err := os.Lchown(link, 12345, 23456); err != nil {
		t.Fatal(err)
	}
	refused("chown -h root " + link)
}
