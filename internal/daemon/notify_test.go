package daemon

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/test/testbed"
)

// manager listens where a service manager would.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T, watchdog string) *manager {
	t.Helper()
	path := filepath.Join(testbed.Dir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", watchdog)
	t.Setenv("WATCHDOG_PID", "")
	return &manager{t, conn}
}

func (m *manager) hears(within time.Duration) (string, error) {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 256)
	n, err := m.conn.Read(b)
	return string(b[:n]), err
}

// expects fails unless the next message is this one.
func (m *manager) expects(want string) {
	m.t.Helper()
	if got, err := m.hears(30 * time.Second); err != nil || got != want {
		m.t.Fatalf("heard %q, %v, want %q", got, err, want)
	}
}

func TestServiceManagerIsTold(t *testing.T) {
	m := newManager(t, "600000000")
	_, c := trial(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c, io.Discard) }()
	m.expects("READY=1")
	conn, err := net.Dial("unix", strings.TrimPrefix(c.Listen, "unix://"))
	if err != nil {
		t.Fatal("it said that it was ready, and takes no connection: ", err)
	}
	conn.Close()
	m.expects("WATCHDOG=1")
	cancel()
	m.expects("STOPPING=1")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A start that fails must not look like one that came to its end.
func TestFailedStartIsNotReady(t *testing.T) {
	m := newManager(t, "")
	_, c := trial(t)
	c.ENC.Group = "no-such-group"
	if err := Run(t.Context(), c, io.Discard); err == nil {
		t.Fatal("it started")
	}
	if got, err := m.hears(time.Millisecond); err == nil {
		t.Errorf("the service manager was told %q", got)
	}
}

// hanging is a real engine whose disk does not come back once it is told to hang.
type hanging struct {
	store.Engine
	hangs chan struct{}
}

func (h *hanging) Commit(ctx context.Context, b store.Batch) (int64, error) {
	select {
	case <-h.hangs:
		<-ctx.Done()
		return 0, ctx.Err()
	default:
		return h.Engine.Commit(ctx, b)
	}
}

func TestWatchdogIsAnsweredWhileTheStoreAnswers(t *testing.T) {
	m := newManager(t, "30000")
	engine, err := bolt.Open(filepath.Join(t.TempDir(), "espm.db"), bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	hung := &hanging{engine, make(chan struct{})}
	s, err := store.New(t.Context(), hung)
	if err != nil {
		t.Fatal(err)
	}
	logs := make(lines, 100)
	_, c := trial(t)
	watched := supervisor{newLog(c.Log, logs)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); watched.alive(ctx, s.Answers) }()
	defer func() { cancel(); <-ended }()
	m.expects("WATCHDOG=1")
	m.expects("WATCHDOG=1")
	close(hung.hangs)
	for len(logs) > 0 { // a busy machine may have been late before
		<-logs
	}
	for range 2 { // the first may be of a round that was under way
		if line := <-logs; !strings.Contains(line, "the store does not answer") {
			t.Fatal(line)
		}
	}
	for err = nil; err == nil; { // what was said before it hung
		_, err = m.hears(time.Millisecond)
	}
	for range 3 { // three more rounds
		<-logs
	}
	if got, err := m.hears(time.Millisecond); err == nil {
		t.Errorf("the store hangs, and the service manager was told %q", got)
	}
}

// lines hands on what is logged.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

func TestWrongWatchdogIsSaid(t *testing.T) {
	newManager(t, "soon")
	logs := make(lines, 1)
	_, c := trial(t)
	(supervisor{newLog(c.Log, logs)}).alive(t.Context(), nil)
	if line := <-logs; !strings.Contains(line, "set wrongly") {
		t.Error(line)
	}
}
