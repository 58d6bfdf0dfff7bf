package pkgtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/test/debian"
	"github.com/espm-project/espm/test/need"
)

// source is the folder of the module.
const source = "../.."

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tool needs a program, and returns a function that runs it and returns its output.
func tool(t *testing.T, name string) func(args ...string) (string, error) {
	t.Helper()
	need.Program(t, name)
	return func(args ...string) (string, error) {
		return run(t, exec.CommandContext(t.Context(), name, args...))
	}
}

func run(t *testing.T, cmd *exec.Cmd) (string, error) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// packages are the packages of one version.
type packages struct{ deb, rpm string }

// built builds a version of the packages from a source folder.
func built(t *testing.T, from, version string) packages {
	t.Helper()
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "packaging/build")
	cmd.Dir = from
	cmd.Env = append(os.Environ(), "VERSION="+version, "COMMIT="+commit, "SOURCE_DATE_EPOCH=1767225600", "OUT="+out)
	if said, err := run(t, cmd); err != nil {
		t.Fatalf("packaging/build: %v\n%s", err, said)
	}
	var p packages
	for pattern, name := range map[string]*string{"espm_*.deb": &p.deb, "espm-*.rpm": &p.rpm} {
		found, err := filepath.Glob(filepath.Join(out, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: got %v, %v, want one", pattern, found, err)
		}
		*name = found[0]
	}
	return p
}

const commit = "0123456789abcdef0123456789abcdef01234567"

// first are the packages of the version that most tests look at.
var first = func() func(*testing.T) packages {
	var once sync.Once
	var p packages
	return func(t *testing.T) packages {
		t.Helper()
		once.Do(func() {
			all := built(t, source, "1.0.0")
			for from, to := range map[string]*string{all.deb: &p.deb, all.rpm: &p.rpm} { // they outlive this test
				*to = filepath.Join(scratch, filepath.Base(from))
				check(t, os.Rename(from, *to))
			}
		})
		if p.deb == "" {
			t.Fatal("the packages were not built")
		}
		return p
	}
}()

// scratch is a folder for all tests.
var scratch string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "espm-package")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	scratch = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// bookworm is a clean root of Debian 12, made once and cached.
var bookworm = sync.OnceValues(func() (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("a root of Debian needs root")
	}
	return debian.Root("ESPM_PACKAGE_ROOT", "bookworm", "usr/bin/dpkg", nil)
})

// machine is a copy of the root.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	clean, err := bookworm()
	need.This(t, err)
	dir, err := os.MkdirTemp("", "espm") // a socket's path has 107 bytes at most
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	check(t, os.Chmod(dir, 0o755))
	m := &machine{t, filepath.Join(dir, "root")}
	if out, err := run(t, exec.CommandContext(t.Context(), "cp", "-a", clean, m.root)); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

// command is one that runs in the machine, with the environment that a shell there would have.
func (m *machine) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(m.t.Context(), "/usr/sbin/chroot", append([]string{m.root, name}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// try runs a shell's command line as root and returns what it printed, both outputs.
func (m *machine) try(line string) (string, error) {
	m.t.Helper()
	return run(m.t, m.command("sh", "-ec", line))
}

// does runs a line that must succeed, and returns its standard output.
func (m *machine) does(line string) string {
	m.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := m.command("sh", "-ec", line)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		m.t.Fatalf("%s: %v\n%s%s", line, err, &stdout, &stderr)
	}
	return strings.TrimSpace(stdout.String())
}

// says checks that the line prints exactly this.
func (m *machine) says(line, want string) {
	m.t.Helper()
	if got := m.does(line); got != want {
		m.t.Errorf("%s: got %q, want %q", line, got, want)
	}
}

// install has dpkg install a package. It must not complain.
func (m *machine) install(deb string) {
	m.t.Helper()
	text, err := os.ReadFile(deb)
	check(m.t, err)
	check(m.t, os.WriteFile(m.path("tmp/espm.deb"), text, 0o644))
	m.dpkg("--install /tmp/espm.deb")
	check(m.t, os.Remove(m.path("tmp/espm.deb")))
}

func (m *machine) dpkg(line string) {
	m.t.Helper()
	out, err := m.try("dpkg " + line)
	if err != nil {
		m.t.Fatalf("dpkg %s: %v\n%s", line, err, out)
	}
	for said := range strings.Lines(out) {
		if strings.Contains(said, "warning") || strings.Contains(said, "rror") || strings.Contains(said, "not found") {
			m.t.Errorf("dpkg %s complains: %s", line, said)
		}
	}
}
