package debian

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const variable = "ESPM_TEST_ROOT"

// bootstrap stands for debootstrap. It makes one file, and fails over what is there already.
const bootstrap = `#!/bin/sh
set -e
[ "$1 $2" = "--variant=minbase suite" ]
mkdir "$3"
echo "$DEBIAN_FRONTEND $LANG" > "$3/made"
`

func place(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "debootstrap"), []byte(bootstrap), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	dir := filepath.Join(t.TempDir(), "kept", "root")
	t.Setenv(variable, dir)
	return dir
}

func TestRootIsMadeOnce(t *testing.T) {
	dir := place(t)
	broken := errors.New("broken")
	if _, err := Root(variable, "suite", "made", func(context.Context, string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a root that is not complete is kept")
	}
	finish := func(_ context.Context, root string) error {
		return os.WriteFile(filepath.Join(root, "finished"), nil, 0o600)
	}
	for range 2 { // it could not be made twice
		if got, err := Root(variable, "suite", "made", finish); err != nil || got != dir {
			t.Errorf("got %s, %v, want %s", got, err, dir)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "finished")); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(text) != "noninteractive C.UTF-8\n" {
		t.Errorf("its environment: %s, %v", text, err)
	}
	if _, err := os.Stat(dir + ".part"); err == nil {
		t.Error("what it was made in is kept")
	}
}

func TestRootThatIsThereIsTaken(t *testing.T) {
	dir := place(t)
	t.Setenv("PATH", "")
	if _, err := Root(variable, "suite", "made", nil); err == nil || !strings.Contains(err.Error(), "debootstrap is not installed") {
		t.Errorf("got %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "made"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := Root(variable, "suite", "made", nil); err != nil || got != dir {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestFolder(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "/cache")
	for value, want := range map[string]string{"": "/cache/espm/suite", "/elsewhere": "/elsewhere", "here": ""} {
		t.Setenv(variable, value)
		got, err := Folder(variable, "suite")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s=%s: got %s, %v, want %s", variable, value, got, err, want)
		}
	}
}

// What a command has started in the background ends with it: a chroot that is in use could not be made anew.
func TestRunEndsAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, "sh", "-c", `exec 9>"$0"; sleep 600 & echo up >&9; wait`, path) }()
	fifo, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	if err := fifo.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := fifo.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(fifo); err != nil {
		t.Error("something still runs: ", err)
	}
	if err := <-ended; err == nil {
		t.Error("it succeeded")
	}
}
