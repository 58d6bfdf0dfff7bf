package encclient

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/test/need"
)

// Each entry is another ENC, a shell script, and what Puppet gets of it.
func TestOtherENC(t *testing.T) {
	for _, test := range []struct {
		what, script, args string
		code               int
		out                string
	}{
		{"its arguments, split on white space, and the certname",
			`printf '[%s]' "$@"`, ` -v  "a b"` + "\t*", 0, `[-v]["a][b"][*][web02]`},
		{"its output passes unchanged", `printf '\n---\nclasses:\n  - a\r\n\377 no newline at the end'`, "", 0,
			"\n---\nclasses:\n  - a\r\n\377 no newline at the end"},
		{"no output is its answer: Puppet says that it could not find the node", `:`, "", 0, ""},
		{"standard input is at its end", `cat; echo done`, "", 0, "done\n"},
		{"its reason passes unchanged", `echo "no such host: $1"; exit 3`, "", 1, "no such host: web02\n"},
		{"YAML before a failure is no answer", `echo '---'; exit 1`, "", 1, "---\n"},
	} {
		t.Run(test.what, func(t *testing.T) {
			s, _ := newOther(t, test.script, test.args)
			s.expect(t, "web02", test.code, test.out)
		})
	}
}

func TestOtherENCIsAskedForUnknownNodesOnly(t *testing.T) {
	s, _ := newOther(t, "echo asked", "")
	s.expect(t, "web01", 0, webYAML)
	s.expectReason(t, "torn", "group not found")
	s.expectReason(t, "../x", "labels must not be empty")
}

func TestOtherENCFailsWithoutAReason(t *testing.T) {
	s, path := newOther(t, "echo; exit 7", "")
	s.expectReason(t, "web02", `"web02" is unknown to espm`, path, "failed without a reason: exit status 7")
	s, path = newOther(t, "kill -9 $$", "")
	s.expectReason(t, "web02", path, "failed without a reason: signal: killed")
}

func TestOtherENCCannotStart(t *testing.T) {
	s, path := newOther(t, "", "")
	check(t, os.Chmod(path, 0o644))
	s.expectReason(t, "web02", `"web02" is unknown to espm`, "can't be started", path, "permission denied")
	check(t, os.Remove(path))
	s.expectReason(t, "web02", path, "no such file")
}

// At the deadline, the real one, it is killed, with all that it started.
func TestOtherENCHangs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ what, script string }{
		{"itself", `echo started >&3; exec sleep 60`},
		{"its child", `echo started >&3; sleep 60`},
		{"its child, while it ignores signals", `trap "" TERM INT HUP; sleep 60 & echo started >&3; wait`},
		{"its child, that has its output, after its own end", `sleep 60 & echo started >&3`},
		{"without end of output", `echo started >&3; exec yes`},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			s, path := newOther(t, `exec 3>"$1"; `+test.script, "FIFO")
			alive := fifo(t, s)
			within(t, Deadline, 10*time.Second, func() {
				s.expect(t, "web02", 1, fmt.Sprintf("espm: node \"web02\" is unknown to espm and the other ENC, %s, did not answer within 2s\n", path))
			})
			// Only the script and its children have the pipe's other end.
			check(t, alive.SetReadDeadline(time.Now().Add(10*time.Second)))
			if said, err := io.ReadAll(alive); err != nil || string(said) != "started\n" {
				t.Errorf("a child lives on: %q, %v", said, err)
			}
		})
	}
}

// A child that made itself independent can't be killed, but isn't waited for.
func TestOtherENCLeavesADaemon(t *testing.T) {
	t.Parallel()
	need.Program(t, "setsid")
	s, _ := newOther(t, `exec 3>"$1"; setsid sh -c 'echo $$ >&3; exec sleep 60' & wait`, "FIFO")
	alive := fifo(t, s)
	within(t, Deadline, 10*time.Second, func() { s.expectReason(t, "web02", "did not answer within 2s") })
	line, err := bufio.NewReader(alive).ReadString('\n')
	check(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	check(t, err)
	check(t, syscall.Kill(pid, syscall.SIGKILL)) // it lived, as it must for the test to mean something
}

// newOther is a site without a daemon whose unknown nodes a script is asked
// about, and the script's path. FIFO among the arguments is a path in its folder.
func newOther(t *testing.T, script, args string) (*site, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "old-enc")
	check(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	command := path + " " + strings.ReplaceAll(args, "FIFO", path+".fifo")
	s := newSite(t, enc.Unknown{Policy: enc.Command, Command: command})
	return s, path
}

// fifo is the reading end of the pipe that a script was given as FIFO.
func fifo(t *testing.T, s *site) *os.File {
	t.Helper()
	a := s.Ask("web02", time.Now().Add(time.Minute))
	path := strings.Fields(a.Text)[1]
	check(t, syscall.Mkfifo(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}
