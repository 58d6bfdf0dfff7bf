package pkgtest

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/config"
)

// Nothing of the folder, the machine or the time of the build is in a package.
func TestBuildIsReproducible(t *testing.T) {
	one := first(t)
	copied := filepath.Join(t.TempDir(), "elsewhere")
	files, err := exec.CommandContext(t.Context(), "git", "-C", source, "ls-files", "-z").Output()
	check(t, err)
	for name := range strings.SplitSeq(strings.TrimRight(string(files), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(source, name))
		check(t, err)
		info, err := os.Stat(filepath.Join(source, name))
		check(t, err)
		to := filepath.Join(copied, name)
		check(t, os.MkdirAll(filepath.Dir(to), 0o700))
		check(t, os.WriteFile(to, text, info.Mode().Perm()&0o700))
	}
	two := built(t, copied, "1.0.0")
	for a, b := range map[string]string{one.deb: two.deb, one.rpm: two.rpm} {
		had, err := os.ReadFile(a)
		check(t, err)
		got, err := os.ReadFile(b)
		check(t, err)
		if filepath.Base(a) != filepath.Base(b) || !bytes.Equal(had, got) {
			t.Errorf("two builds of one source differ: %s, %d bytes, and %s, %d bytes", filepath.Base(a), len(had), filepath.Base(b), len(got))
		}
	}
}

func TestBuildRefusesBadVersion(t *testing.T) {
	for _, version := range []string{"v1.0.0", "1.0-1", "1.0 0", "1/0"} {
		out := t.TempDir()
		cmd := exec.CommandContext(t.Context(), "packaging/build")
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "VERSION="+version, "OUT="+out)
		said, err := run(t, cmd)
		made, globErr := filepath.Glob(out + "/*")
		if err == nil || !strings.HasPrefix(said, "VERSION: ") || len(made) > 0 || globErr != nil {
			t.Errorf("%q: got %v, %s, made %v", version, err, said, made)
		}
	}
}

func TestLintian(t *testing.T) {
	lintian := tool(t, "lintian")
	if out, err := lintian("--fail-on", "error,warning", "--allow-root", first(t).deb); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The first-boot script and the examples are checked where they are tested, in packaging/bootstrap.
func TestShellScripts(t *testing.T) {
	shellcheck := tool(t, "shellcheck")
	var scripts []string
	for _, pattern := range []string{"packaging/build", "packaging/deb/*", "packaging/rpm/*", "test/demo/*.sh", "test/prepare"} {
		found, err := filepath.Glob(filepath.Join(source, pattern))
		check(t, err)
		scripts = append(scripts, found...)
	}
	if len(scripts) != 9 {
		t.Errorf("got %v", scripts)
	}
	if out, err := shellcheck(append([]string{"--shell=sh", "--norc"}, scripts...)...); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestRPM(t *testing.T) {
	rpm := tool(t, "rpm")
	p := first(t)
	out, err := rpm("-qp", "--queryformat", "%{NAME} %{VERSION} %{RELEASE}\n[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]", p.rpm)
	check(t, err)
	have := strings.Split(strings.TrimSpace(out), "\n")
	for _, want := range []string{
		"espm 1.0.0 1",
		"drwxr-xr-x root:root /etc/espm",
		"-rwxr-xr-x root:root /usr/bin/espm",
		"-rwxr-xr-x root:root /usr/bin/espm-enc",
		"-rw-r--r-- root:root /usr/lib/systemd/system/espm.service",
		"-rw-r--r-- root:root /usr/lib/sysusers.d/espm.conf",
		"-rw-r--r-- root:root /usr/lib/tmpfiles.d/espm.conf",
		"-rw-r--r-- root:root /usr/share/bash-completion/completions/espm",
		"-rw-r--r-- root:root /usr/share/doc/espm/examples/console/main.go",
		"-rw-r--r-- root:root /usr/share/doc/espm/examples/espm-puppetserver.yaml",
		"-rw-r--r-- root:root /usr/share/doc/espm/examples/grafana/espm.json",
		"-rw-r--r-- root:root /usr/share/doc/espm/examples/launch.sh",
		"-rw-r--r-- root:root /usr/share/doc/espm/examples/prometheus/espm.rules.yaml",
		"-rw-r--r-- root:root /usr/share/doc/espm/examples/terraform/main.tf",
		"-rw-r--r-- root:root /usr/share/doc/espm/LICENSE",
		"-rw-r--r-- root:root /usr/share/espm/proto/espm/v1/node.proto",
		"-rwxr-xr-x root:root /usr/share/espm/bootstrap/runConfigurationManagement-PUPPET",
		"-rw-r--r-- root:root /usr/share/fish/vendor_completions.d/espm.fish",
		"-rw-r--r-- root:root /usr/share/man/man1/espm-node-provision.1.gz",
		"-rw-r--r-- root:root /usr/share/zsh/site-functions/_espm",
	} {
		if !slices.Contains(have, want) {
			t.Errorf("the rpm does not list %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "lintian") || strings.Contains(out, "vendor-completions") {
		t.Errorf("the rpm has files that only Debian knows:\n%s", out)
	}
	// What Debian's has, aside from where shells look for completions.
	deb, err := run(t, exec.CommandContext(t.Context(), "dpkg-deb", "--fsys-tarfile", p.deb))
	check(t, err)
	if n := strings.Count(out, "/man1/"); n < 25 || strings.Count(deb, "/man1/espm") < n {
		t.Errorf("the rpm has %d manual pages, the deb other ones", n)
	}
}

func TestUnit(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	unit := filepath.Join(source, "packaging/systemd/espm.service")
	if out, err := analyze("security", "--offline=true", "--no-pager", "--threshold=20", unit); err != nil {
		t.Errorf("its exposure is over 2.0: %v\n%s", err, out)
	}
	// The daemon reads whether a time service keeps the clock right, and can't set the clock.
	out, err := analyze("security", "--offline=true", "--json=short", unit)
	check(t, err)
	for _, want := range []string{
		`{"set":true,"name":"CapabilityBoundingSet=~CAP_SYS_TIME"`, `{"set":true,"name":"DeviceAllow="`, `{"set":false,"name":"ProtectClock="`, "(e.g. adjtimex is allowed)",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("systemd-analyze does not say %s:\n%s", want, out)
		}
	}
	root := t.TempDir() // systemd-analyze wants what the unit names to be there
	deb := first(t).deb
	if out, err := run(t, exec.CommandContext(t.Context(), "dpkg-deb", "--extract", deb, root)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.CopyFS(filepath.Join(root, "usr/lib/systemd/system"), unitsOnly{os.DirFS("/usr/lib/systemd/system")}); err != nil {
		t.Fatal(err)
	}
	check(t, os.MkdirAll(filepath.Join(root, "bin"), 0o755))
	check(t, os.WriteFile(filepath.Join(root, "bin/kill"), nil, 0o755)) // of another package
	if out, err := analyze("verify", "--root="+root, "--man=no", "espm.service"); err != nil || strings.Contains(out, "espm") {
		t.Errorf("%v\n%s", err, out)
	}
}

// unitsOnly are the targets and slices that every unit refers to.
type unitsOnly struct{ fs.FS }

func (u unitsOnly) ReadDir(name string) ([]fs.DirEntry, error) {
	all, err := fs.ReadDir(u.FS, name)
	return slices.DeleteFunc(all, func(e fs.DirEntry) bool {
		suffix := filepath.Ext(e.Name())
		return !e.Type().IsRegular() || suffix != ".target" && suffix != ".slice" && suffix != ".mount" && suffix != ".socket"
	}), err
}

func TestCompletions(t *testing.T) {
	root := t.TempDir()
	if out, err := run(t, exec.CommandContext(t.Context(), "dpkg-deb", "--extract", first(t).deb, root)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for shell, file := range map[string]string{
		"bash": "usr/share/bash-completion/completions/espm",
		"zsh":  "usr/share/zsh/vendor-completions/_espm",
		"fish": "usr/share/fish/vendor_completions.d/espm.fish",
	} {
		t.Run(shell, func(t *testing.T) {
			parse := tool(t, shell)
			if out, err := parse("-n", filepath.Join(root, file)); err != nil {
				t.Errorf("%s: %v\n%s", file, err, out)
			}
		})
	}
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(source, "packaging/examples/*.yaml"))
	check(t, err)
	if len(files) == 0 {
		t.Error("there are none")
	}
	for _, file := range files {
		if _, err := config.Load(file); err != nil {
			t.Error(err)
		}
	}
}
