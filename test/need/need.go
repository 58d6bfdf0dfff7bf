// Package need skips a test if the host lacks something, and names it in one line. With
// ESPM_NEED=all, as in continuous integration, the test fails instead.
package need

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/espm-project/espm/test/testbed"
)

const variable = "ESPM_NEED"

// All reports whether something missing is a failure.
func All() bool { return os.Getenv(variable) == "all" }

// This skips or fails the test if err is not nil. The error names what is missing.
func This(t testing.TB, missing error) {
	t.Helper()
	switch mode := os.Getenv(variable); {
	case mode != "" && mode != "all":
		t.Fatalf("%s=%s: must be empty or all", variable, mode)
	case missing != nil && All():
		t.Fatalf("%s=all, but %v", variable, missing)
	case missing != nil:
		t.Skipf("skipped: %v", missing)
	}
}

// Program needs a program of the host, and returns its path.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := Installed(name)
	This(t, err)
	return path
}

// Installed returns the path of a program of the host, or an error if it is missing.
func Installed(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed: %w", name, err)
	}
	return path, nil
}

// Condition is one of test scripts, "need:PROGRAM" or "need:root": whether the host has it. That it
// has not is an error where all is needed.
func Condition(s string) (bool, error) {
	what, ok := strings.CutPrefix(s, "need:")
	if !ok {
		return false, fmt.Errorf("unknown condition %q", s)
	}
	var missing error
	if what == "root" {
		missing = root("run this script")
	} else {
		_, missing = Installed(what)
	}
	if missing != nil && All() {
		return false, fmt.Errorf("%s=all, but %w", variable, missing)
	}
	return missing == nil, nil
}

// Root needs root's rights; to names the purpose.
func Root(t testing.TB, to string) {
	t.Helper()
	This(t, root(to))
}

func root(to string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("root alone can %s", to)
	}
	return nil
}

// Disk needs a small file system of its own, of so many bytes as tmpfs's option size spells,
// and returns the folder that it is mounted on.
func Disk(t testing.TB, size string) string {
	t.Helper()
	dir := testbed.Dir(t)
	if err := syscall.Mount("none", dir, "tmpfs", 0, "mode=0755,size="+size); err != nil {
		This(t, fmt.Errorf("root alone can mount a small disk: %w", err))
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
