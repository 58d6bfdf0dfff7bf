package e2e

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/test/need"
)

// host is where a Puppet Server and an agent are installed: this machine, or
// the root of another Debian, which shares this one's network. A test's scratch folder
// has the same path in both.
type host struct {
	name string
	root string // "": this machine
}

var here = &host{name: "here"}

// hosts are all that a test may run on.
var hosts = []struct {
	name string
	get  func() (*host, error)
}{
	{"here", func() (*host, error) { return here, nil }},
	{"trixie", trixie},
}

// onEachHost runs a test with the Puppet Server of each host. A host that
// can't be had is skipped, with the reason.
func onEachHost(t *testing.T, test func(t *testing.T, h *host)) {
	requirePuppet(t)
	for _, each := range hosts {
		t.Run(each.name, func(t *testing.T) {
			h, err := each.get()
			need.This(t, err)
			leaveAlone(t, h)
			test(t, h)
		})
	}
}

// path is where this machine finds a file of the host's.
func (h *host) path(path string) string { return filepath.Join("/", h.root, path) }

// mount makes a namespace of its own, so that nothing is left mounted when the
// command ends, however it ends: the host's devices and processes, an empty /tmp, and the scratch folder.
const mount = `
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/tmp"
mkdir -p "$1$2"
mount --bind "$2" "$1$2"
dir=$3 root=$1
shift 3
exec chroot "$root" env -C "$dir" "$@"`

// command is a command on the host, run by root in a folder below scratch.
func (h *host) command(scratch, dir string, argv ...string) *exec.Cmd {
	if h.root == "" {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.SysProcAttr = dir, ownGroup()
		return cmd
	}
	return enter(mount, h.root, scratch, dir, argv)
}

// asPuppet is command as the user puppet of the host, who is in the group
// that this machine's espm lets ask its socket.
func (h *host) asPuppet(t *testing.T, scratch, dir string, argv ...string) *exec.Cmd {
	t.Helper()
	uid, gid := h.puppetIDs(t)
	if h.root == "" {
		cmd := h.command(scratch, dir, argv...)
		cmd.SysProcAttr = asUser(uid, gid)
		return cmd
	}
	_, group := here.puppetIDs(t)
	// A change of the user forgets what enter asked for.
	return enter(mount, h.root, scratch, dir, append([]string{"setpriv", "--reuid", strconv.Itoa(uid), "--regid", strconv.Itoa(gid),
		"--groups", strconv.Itoa(group), "--pdeathsig", "KILL"}, argv...))
}

// enter is a command that root runs in a folder of another root, which a script makes ready in a
// namespace of its own: mount, or one that does more. It ends with the tests, as ownGroup's do.
func enter(script, root, scratch, dir string, argv []string) *exec.Cmd {
	args := append([]string{"--mount", "sh", "-ec", script, "enter", root, scratch, dir, "setpriv", "--pdeathsig", "KILL"}, argv...)
	cmd := exec.Command("unshare", args...)
	cmd.SysProcAttr = ownGroup()
	return cmd
}

// puppetIDs returns the numeric user and group that Puppet Server runs as.
func (h *host) puppetIDs(t *testing.T) (uid, gid int) {
	t.Helper()
	for line := range strings.Lines(string(readFile(t, h.path("/etc/passwd")))) {
		fields := strings.Split(line, ":")
		if fields[0] != puppetUser {
			continue
		}
		uid, err := strconv.Atoi(fields[2])
		check(t, err)
		gid, err := strconv.Atoi(fields[3])
		check(t, err)
		return uid, gid
	}
	t.Fatalf("%s: no user %s", h.path("/etc/passwd"), puppetUser)
	return 0, 0
}

// version is that of a package of the host, without Debian's part.
func (h *host) version(t *testing.T, name string) string {
	t.Helper()
	r := run(t, time.Minute, exec.Command("dpkg-query", "--admindir", h.path("/var/lib/dpkg"), "--show", "--showformat", "${Version}", name))
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	version, _, _ := strings.Cut(r.stdout, "-")
	return version
}
