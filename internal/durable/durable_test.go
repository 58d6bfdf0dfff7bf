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

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, want := range []struct {
		data string
		mode os.FileMode
	}{{"one", 0o666}, {"two", 0o640}, {"", 0o600}} {
		if err := durable.OS.WriteFile(path, []byte(want.data), want.mode); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != want.data {
			t.Errorf("holds %q, want %q", got, want.data)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want.mode {
			t.Errorf("mode %v, want %v: the umask must not matter", st.Mode(), want.mode)
		}
	}
	leavesNothingElse(t, path)
}

func TestWriteFileKeepsTheOwner(t *testing.T) {
	need.Root(t, "give a file away")
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "old")
	if err := os.Chown(path, 12345, 23456); err != nil {
		t.Fatal(err)
	}
	if err := durable.OS.WriteFile(path, []byte("new"), 0o640); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 12345 || st.Gid != 23456 {
		t.Errorf("owner %d:%d, want 12345:23456", st.Uid, st.Gid)
	}
}

// Where everybody may put files, one that stands there already gets nothing of
// what is written over it: who put it there would own a key, or a backup with one.
func TestWriteFileGivesNothingAway(t *testing.T) {
	need.Root(t, "give a file away")
	dir := t.TempDir()
	path := filepath.Join(dir, "backup.tar")
	write(t, path, "")
	if err := errors.Join(os.Chown(path, 12345, 23456), os.Chmod(dir, 0o777|os.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	if err := durable.OS.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 0 || int(st.Gid) != os.Getegid() {
		t.Errorf("owner %d:%d, want root", st.Uid, st.Gid)
	}
}

func TestWriteFileErrorNamesThePath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent", "f")
	err := durable.OS.WriteFile(path, nil, 0o600)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want ENOENT naming %s", err, path)
	}
}

// TestWriteFileErrorIsTheSameAgain: else whoever logs it once logs it for ever.
func TestWriteFileErrorIsTheSameAgain(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "folder")
	if err := os.MkdirAll(filepath.Join(folder, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(filepath.Dir(folder), "absent", "f"): unix.ENOENT,
		folder: unix.EEXIST, // it can't be renamed to a folder
	} {
		first, second := durable.OS.WriteFile(path, nil, 0o600), durable.OS.WriteFile(path, nil, 0o600)
		if !errors.Is(first, want) || first.Error() != second.Error() || !strings.Contains(first.Error(), path) {
			t.Errorf("errors %v and %v, want %v twice, naming %s", first, second, want, path)
		}
	}
}

func TestAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, line := range []string{"one\n", "two\n"} {
		if err := durable.OS.Append(path, []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, path); got != "one\ntwo\n" {
		t.Errorf("holds %q", got)
	}
}

func TestRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "x")
	for range 2 {
		if err := durable.OS.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat after Remove: %v", err)
	}
}

func TestRemoveTellsWhichStay(t *testing.T) {
	dir := t.TempDir()
	stays, goes := filepath.Join(dir, "stays"), filepath.Join(dir, "goes")
	write(t, goes, "x")
	if err := os.MkdirAll(filepath.Join(stays, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := durable.OS.Remove(stays, goes)
	each, ok := errors.AsType[*durable.RemoveError](err)
	if !ok || len(each.Paths) != 1 || !errors.Is(each.Paths[stays], unix.ENOTEMPTY) || !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("Remove: %v, want ENOTEMPTY for %s alone", err, stays)
	}
	if _, err := os.Stat(goes); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat after Remove: %v", err)
	}
}

// TestFullDisk fills a small file system: what stood before stays as it was.
func TestFullDisk(t *testing.T) {
	dir := need.Disk(t, "64k")
	path := filepath.Join(dir, "f")
	if err := durable.OS.WriteFile(path, []byte("before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 100<<10)
	if err := durable.OS.Append(path, big, 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Append: %v, want ENOSPC", err)
	}
	if err := durable.OS.WriteFile(path, big, 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("WriteFile: %v, want ENOSPC", err)
	}
	if got := read(t, path); got != "before\n" {
		t.Errorf("holds %d bytes, want what it held before", len(got))
	}
	leavesNothingElse(t, path)
	if err := durable.OS.Append(path, []byte("after\n"), 0o644); err != nil {
		t.Errorf("a small append still fits: %v", err)
	}
}

func TestRemoveStale(t *testing.T) {
	dir := t.TempDir()
	keep := []string{"a.pem", "a.pem1", ".b.pem7", ".a.pem", ".1", ".hidden"}
	for _, name := range append(keep, ".a.pem1", ".a.pem9223372036854775807") {
		write(t, filepath.Join(dir, name), "x")
	}
	n, err := durable.RemoveStale(dir, func(name string) bool { return name == "a.pem" })
	if err != nil || n != 2 {
		t.Errorf("RemoveStale: %d, %v; want 2", n, err)
	}
	for _, name := range keep {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s was not ours to remove: %v", name, err)
		}
	}
	if n, err := durable.RemoveStale(filepath.Join(dir, "absent"), nil); n != 0 || err != nil {
		t.Errorf("RemoveStale of no folder: %d, %v", n, err)
	}
}

func leavesNothingElse(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("the folder holds %v, want only %s", entries, filepath.Base(path))
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}
