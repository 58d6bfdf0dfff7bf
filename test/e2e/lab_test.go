package e2e

import (
	"bytes"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"github.com/espm-project/espm/test/testbed"
)

// lab is the scratch folder of one test and the paths in it.
type lab struct {
	Host    *host  // where Puppet Server runs, and the agents that a test does not say otherwise of
	Root    string // the scratch folder
	Bin     string // espm and espm-enc
	Dir     string // espm's own
	CRL     string // the CRL that espm publishes: Puppet Server's hostcrl
	Server  string // Puppet Server's
	Applied string // where the catalogs write
	Port    int    // Puppet Server's, on loopback
	ENC     string // Puppet Server's external_nodes
	CA      string // the folder of Puppet Server's own CA; "": its CA service is disabled
	CAURL   string // where espm reaches that CA
	CATrust string // and the file that it trusts it by
}

func newLab(t *testing.T, h *host) *lab {
	t.Helper()
	root, err := os.MkdirTemp("", "espm-e2e-")
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("ESPM_E2E_KEEP") != "" {
			t.Logf("kept %s", root)
			return
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	check(t, os.Chmod(root, 0o755)) // the user puppet passes through
	l := &lab{
		Host:    h,
		Root:    root,
		Bin:     binaries(t, filepath.Join(root, "bin")),
		Dir:     filepath.Join(root, "espm"),
		CRL:     filepath.Join(root, "published", "crl.pem"),
		Server:  filepath.Join(root, "server"),
		Applied: filepath.Join(root, "applied"),
		Port:    freePort(t),
	}
	// Puppet Server splits the command on white space: no quoting, no wrapper.
	l.ENC = strings.Join(l.encCommand(), " ")
	for _, dir := range []string{l.Dir, filepath.Dir(l.CRL), l.Server, l.Applied} {
		check(t, os.MkdirAll(dir, 0o755))
	}
	return l
}

func (l *lab) encCommand() []string {
	return []string{
		filepath.Join(l.Bin, "espm-enc"),
		"--socket", filepath.Join(l.Dir, "run/enc.sock"),
		"--db", filepath.Join(l.Dir, "espm.db"),
	}
}

// binaries puts espm and espm-enc into dir: those of ESPM_E2E_BIN, or built.
func binaries(t *testing.T, dir string) string {
	t.Helper()
	check(t, os.Mkdir(dir, 0o755))
	from := os.Getenv("ESPM_E2E_BIN")
	if from == "" {
		from = testbed.Build(t, "cmd/espm", "cmd/espm-enc")
	}
	for _, name := range []string{"espm", "espm-enc"} {
		check(t, os.WriteFile(filepath.Join(dir, name), readFile(t, filepath.Join(from, name)), 0o755))
	}
	return dir
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// render writes the template to a file, filled with data.
func render(t *testing.T, source, target string, data any) {
	t.Helper()
	text, err := os.ReadFile(source)
	check(t, err)
	parsed, err := template.New(source).Option("missingkey=error").Parse(string(text))
	check(t, err)
	var out bytes.Buffer
	check(t, parsed.Execute(&out, data))
	check(t, os.MkdirAll(filepath.Dir(target), 0o755))
	check(t, os.WriteFile(target, out.Bytes(), 0o644))
}

// renderTree renders every file below source to the same place below target.
func renderTree(t *testing.T, source, target string, data any) {
	t.Helper()
	check(t, filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		render(t, path, filepath.Join(target, name), data)
		return nil
	}))
}

// chownTree gives everything below dir to a user.
func chownTree(t *testing.T, dir string, uid, gid int) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	}))
}
