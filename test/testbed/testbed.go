// Package testbed has shared parts of tests: a folder, programs of the module, and a Puppet that is a script.
package testbed

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const module = "github.com/espm-project/espm/"

// Dir returns a folder that is removed when the test ends. Its name is short, independent of TMPDIR and the test's
// name, as a socket's path has at most 107 bytes.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "espm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Build builds static programs, like the shipped ones, and returns their folder. The folder is removed when the
// test ends, and other users can't read it. Programs are named by their folders in the module, such as cmd/espm.
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

// Contents returns the regular files below a folder.
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
