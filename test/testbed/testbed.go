// Package testbed has what tests stand on: a folder, programs of the module, and a Puppet that answers from a script.
package testbed

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const module = "github.com/espm-project/espm/"

// Dir returns a folder that goes when the test ends. Its name is short, whatever TMPDIR and the test's
// name are, as a socket's path has 107 bytes at most.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "espm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Build builds programs, static as they are shipped, and returns the folder with them, which goes when the
// test ends and is closed to other users. They are named by their folders in the module: cmd/espm.
func Build(t testing.TB, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	args := []string{"build", "-o", dir}
	for _, program := range programs {
		args = append(args, module+program)
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return dir
}

// Contents are the regular files below a folder.
func Contents(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
