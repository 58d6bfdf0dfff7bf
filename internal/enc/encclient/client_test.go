package encclient

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/enc"
)

func TestDaemonAnswers(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.start(t, enc.Unknown{Policy: enc.Fail})
	defer s.stop()
	s.expect(t, "web01", 0, webYAML)
	s.expect(t, "web02", 1, "espm: node \"web02\" is not registered\n")
	s.expect(t, "torn", 1, "espm: classify \"torn\": group not found: \"gone\"\n")
	s.expect(t, "../x", 1, "espm: certname: \"../x\": labels must not be empty (no leading, trailing or double \".\")\n")
	s.expect(t, "", 1, "espm: certname: must not be empty\n")
	s.expect(t, "web01\nweb02", 1, "espm: certname: \"web01\\nweb02\": labels hold a-z, 0-9, _ and - only, not '\\n'\n")
	s.expect(t, strings.Repeat("x", 100_000), 1, "espm: certname: at most 64 bytes, is 100000\n")
}

func TestDaemonAnswersUnknownNodesEmpty(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.start(t, enc.Unknown{Policy: enc.Blank})
	defer s.stop()
	s.expect(t, "web02", 0, "---\nclasses: {}\n")
}

// Catalogs compile through a restart, an upgrade or a crash of the daemon.
// Who only wants to know gets the same answer, and is not counted.
func TestInspect(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.start(t, enc.Unknown{Policy: enc.Fail})
	defer s.stop()
	s.Inspect = true
	s.expect(t, "web01", 0, webYAML)
	s.expect(t, "web02", 1, "espm: node \"web02\" is not registered\n")
	if n := s.seen.Load(); n != 0 {
		t.Errorf("%d look-ups were counted", n)
	}
	s.Inspect = false
	s.expect(t, "web01", 0, webYAML)
	if n := s.seen.Load(); n != 1 {
		t.Errorf("%d look-ups were counted, want 1", n)
	}
}

func TestStoreAnswersWhileDaemonIsDown(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.expect(t, "web01", 0, webYAML) // it never ran

	s.start(t, enc.Unknown{Policy: enc.Fail})
	s.stop()
	s.expect(t, "web01", 0, webYAML) // it stopped

	l := s.listen(t)
	l.SetUnlinkOnClose(false)
	l.Close()
	s.expect(t, "web01", 0, webYAML) // it was killed, and its socket stayed
	s.expect(t, "web02", 1, "espm: node \"web02\" is not registered\n")
	s.expect(t, "torn", 1, "espm: classify \"torn\": group not found: \"gone\"\n")
}

// The store has the setting for unknown nodes.
func TestStoreAnswersByPolicy(t *testing.T) {
	newSite(t, enc.Unknown{Policy: enc.Blank}).expect(t, "web02", 0, "---\nclasses: {}\n")
	newSite(t, enc.Unknown{Policy: enc.Command, Command: "/bin/echo an answer for"}).expect(t, "web02", 0, "an answer for web02\n")
}

func TestNeitherDaemonNorStore(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	check(t, os.Remove(s.DB))
	within(t, 0, Deadline, func() {
		s.expectReason(t, "web01", "espm is not running", s.Socket, s.DB+" does not exist (--db, ESPM_DB)")
	})
	check(t, os.WriteFile(s.DB, []byte("no store\n"), 0o600))
	s.expectReason(t, "web01", "espm is not running", s.DB, "damaged or no bbolt file")
}

// Something has the store open and is no daemon: a backup, say.
func TestStoreIsLocked(t *testing.T) {
	t.Parallel()
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.open(t)
	s.Deadline = 300 * time.Millisecond
	within(t, 200*time.Millisecond, 5*time.Second, func() {
		s.expectReason(t, "web01", "espm is not running", "another process has locked its store", "locked by another process")
	})
}

// On a busy machine the time ends while the client waits for its turn. That is not the daemon's fault.
func TestTheTimeIsOverBeforeTheDaemonIsAsked(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.serve(t, func(net.Conn) {})
	if _, err := s.askDaemon("web01", time.Now()); !errors.Is(err, errLate) || strings.Contains(err.Error(), "did not answer") {
		t.Errorf("got %v", err)
	}
}

// A daemon that starts or stops holds the store before and after it answers.
func TestStoreIsLockedForAMoment(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	engine, _ := s.open(t)
	s.Deadline = time.Minute
	answer := make(chan enc.Answer)
	go func() { answer <- s.Ask("web01", time.Now().Add(s.Deadline)) }()
	check(t, engine.Close())
	if a := <-answer; a.Status != enc.StatusYAML || a.Text != webYAML {
		t.Errorf("got %c %q", a.Status, a.Text)
	}
}

func TestSilentDaemon(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what string
		talk func(net.Conn)
	}{
		{"says nothing", func(net.Conn) {}},
		{"stops in the header", func(c net.Conn) { io.WriteString(c, "Y 0000") }},
		{"stops in the text", func(c net.Conn) { io.WriteString(c, "Y 00000010\n---\n") }},
	} {
		s := newSite(t, enc.Unknown{Policy: enc.Fail})
		s.serve(t, test.talk)
		s.Deadline = 200 * time.Millisecond
		within(t, s.Deadline, 5*time.Second, func() {
			s.expect(t, "web01", 1, fmt.Sprintf("espm: the daemon at %s did not answer within 200ms\n", s.Socket))
		})
	}
}

// A daemon whose listen queue is full: connecting has the same deadline.
func TestDaemonDoesNotAccept(t *testing.T) {
	t.Parallel()
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	check(t, err)
	defer syscall.Close(fd)
	check(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: s.Socket}))
	check(t, syscall.Listen(fd, 0))
	waits, err := net.Dial("unix", s.Socket) // the one that the queue takes
	check(t, err)
	defer waits.Close()
	s.Deadline = 200 * time.Millisecond
	within(t, s.Deadline, 5*time.Second, func() { s.expectReason(t, "web01", "did not answer within 200ms") })
}

// Puppet Server has no timeout: 2 s are a promise.
func TestProductionDeadline(t *testing.T) {
	t.Parallel()
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.serve(t, func(net.Conn) {})
	within(t, 2*time.Second, 4*time.Second, func() { s.expectReason(t, "web01", "did not answer within 2s") })
}

// A daemon that dies in the middle of an answer is down.
func TestAnswerIsCutShort(t *testing.T) {
	for _, part := range []string{"", "Y", "Y 00000010", "Y 00000010\n", "Y 00000010\n---\nclasses:"} {
		s := newSite(t, enc.Unknown{Policy: enc.Fail})
		s.serve(t, func(c net.Conn) {
			bufio.NewReader(c).ReadString('\n')
			io.WriteString(c, part)
			c.Close()
		})
		s.expect(t, "web01", 0, webYAML)
	}
}

// Closing with the question unread is a reset to the client.
func TestConnectionIsReset(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.serve(t, func(c net.Conn) { c.Close() })
	s.expect(t, "web01", 0, webYAML)
}

func TestStrangeAnswers(t *testing.T) {
	for _, test := range []struct{ answer, reason string }{
		{"HTTP/1.1 400 Bad Request\r\n\r\n", `not an answer: "HTTP/1.1 40"`},
		{"Y ffffffff\n", "not an answer"},
		{"Y -0000001\n", "not an answer"},
		{"Z 00000004\nwhat", "not an answer"},
	} {
		s := newSite(t, enc.Unknown{Policy: enc.Fail})
		s.serve(t, func(c net.Conn) {
			defer c.Close()
			bufio.NewReader(c).ReadString('\n')
			io.WriteString(c, test.answer)
		})
		if code, out := s.ask(t, "web01"); code != 1 || !strings.Contains(out, test.reason) {
			t.Errorf("%q: exit code %d, output %q", test.answer, code, out)
		}
	}
}

// An answer comes whole however the socket cuts it, and however long it is.
func TestAnswerInPieces(t *testing.T) {
	long := strings.Repeat("x", 3_000_000)
	for _, text := range []string{"", "---\n", long} {
		s := newSite(t, enc.Unknown{Policy: enc.Fail})
		s.Deadline = time.Minute
		s.serve(t, func(c net.Conn) {
			defer c.Close()
			bufio.NewReader(c).ReadString('\n')
			answer := fmt.Sprintf("Y %08x\n%s", len(text), text)
			for _, b := range answer[:11] {
				fmt.Fprintf(c, "%c", b)
			}
			io.WriteString(c, answer[11:])
		})
		code, out := s.ask(t, "web01")
		if code != 0 || out != text {
			t.Errorf("exit code %d, %d bytes, want %d", code, len(out), len(text))
		}
	}
}

// Puppet's user has to be in the group of the socket.
func TestSocketIsForbidden(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	s.start(t, enc.Unknown{Policy: enc.Fail})
	defer s.stop()
	check(t, os.Chmod(s.Socket, 0))
	want := fmt.Sprintf("espm: %s: permission denied: add this user to the group that enc.group names\n", s.Socket)
	if os.Getuid() != 0 {
		s.expect(t, "web01", 1, want)
		return
	}
	dir := filepath.Dir(s.Socket)
	check(t, os.Chmod(dir, 0o755))
	self, err := os.Executable()
	check(t, err)
	program, err := os.ReadFile(self)
	check(t, err)
	copied := filepath.Join(dir, "espm-enc")
	check(t, os.WriteFile(copied, program, 0o755))
	cmd := exec.Command(copied, "web01")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), childEnv+"="+s.Socket+","+s.DB)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, _ := cmd.Output()
	if got := string(out); got != want || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code %d, output %q\nwant %q", cmd.ProcessState.ExitCode(), got, want)
	}
}

// The reason must reach Puppet Server; where it can't, the exit code tells.
func TestOutputFails(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	check(t, err)
	defer full.Close()
	if code := s.Run("web01", full); code != 1 {
		t.Errorf("exit code %d", code)
	}
}

// The command line, as Puppet Server calls it and as people do.
func TestMainFunction(t *testing.T) {
	s := newSite(t, enc.Unknown{Policy: enc.Fail})
	none := filepath.Join(t.TempDir(), "none")
	for _, test := range []struct {
		what, socket, db string // of the environment
		args             []string
		code             int
		out              string
	}{
		{"from the environment", s.Socket, s.DB, []string{"web01"}, 0, webYAML},
		{"flags beat the environment", none, none, []string{"--socket", s.Socket, "--db", s.DB, "web01"}, 0, webYAML},
		{"no such store", s.Socket, none, []string{"web01"}, 1, none + " does not exist (--db, ESPM_DB)\n"},
		{"no name", s.Socket, s.DB, nil, 2, "Usage: espm-enc [--socket PATH]"},
		{"two names", s.Socket, s.DB, []string{"web01", "web02"}, 2, "Usage: espm-enc [--socket PATH]"},
		{"an unknown flag", s.Socket, s.DB, []string{"--sokcet", "x", "web01"}, 2, "flag provided but not defined: -sokcet"},
		{"help", s.Socket, s.DB, []string{"--help"}, 0, "/var/lib/espm/espm.db"},
	} {
		t.Setenv("ESPM_ENC_SOCKET", test.socket)
		t.Setenv("ESPM_DB", test.db)
		var stdout strings.Builder
		if code := Main(test.args, &stdout); code != test.code || !strings.Contains(stdout.String(), test.out) {
			t.Errorf("%s: exit code %d, output %q\nwant %d, %q", test.what, code, stdout.String(), test.code, test.out)
		}
	}
}
