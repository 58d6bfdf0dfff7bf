package encsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/test/testbed"
)

// The protocol, byte by byte.
func TestProtocol(t *testing.T) {
	d := start(t, newStore(t), enc.Unknown{Policy: enc.Command, Command: "/bin/old-enc -v"})
	for _, test := range []struct{ question, status, text string }{
		{"web01\n", "Y", enc.Empty},
		{"web02\n", "C", "/bin/old-enc -v"},
		{"\n", "F", "espm: certname: must not be empty"},
		{"web01\r\n", "F", "espm: certname: \"web01\\r\": labels hold a-z, 0-9, _ and - only, not '\\r'"},
		{"web01\nweb02\n", "Y", enc.Empty}, // one question a connection
		{strings.Repeat("x", 100) + "\n", "F", "espm: certname: at most 64 bytes, is 100"},
		{strings.Repeat("x", 1023) + "\n", "F", "espm: certname: at most 64 bytes, is 1023"},
		{strings.Repeat("x", 1024), "F", "espm: certname: at most 64 bytes, is 1024"}, // its end is not waited for
	} {
		want := fmt.Sprintf("%s %08x\n%s", test.status, len(test.text), test.text)
		if got := d.ask(t, test.question); got != want {
			t.Errorf("%.80q: got %q, want %q", test.question, got, want)
		}
	}
	if got := d.ask(t, "web01\n"); got != "Y 00000010\n---\nclasses: {}\n" {
		t.Errorf("got %q", got)
	}
}

func TestRefusalIsLogged(t *testing.T) {
	d := start(t, newStore(t), enc.Unknown{Policy: enc.Fail})
	d.ask(t, "web01\n")
	d.ask(t, "web02\n")
	if n := len(d.log.AllEntries()); n != 1 {
		t.Fatalf("%d entries, want 1", n)
	}
	e := d.log.LastEntry()
	want := logrus.Fields{"certname": "web02", "reason": `espm: node "web02" is not registered`}
	if e.Level != logrus.WarnLevel || fmt.Sprint(e.Data) != fmt.Sprint(want) {
		t.Errorf("got %v %v", e.Level, e.Data)
	}
}

// Only a classification that a catalog is made of is a sign of life.
func TestSightings(t *testing.T) {
	for _, unknown := range []enc.Unknown{{Policy: enc.Fail}, {Policy: enc.Blank}, {Policy: enc.Command, Command: "/bin/old-enc"}} {
		d := start(t, newStore(t), unknown)
		for _, question := range []string{"?web01\n", "!web01\n", "!\n", "!?web01\n", "?!web01\n", "web02\n", "\n", "?\n", "??web01\n", "WEB01\n", "web01"} {
			if question == "web01" {
				conn := d.dial(t) // and gone before the question is whole
				io.WriteString(conn, question)
				conn.Close()
				continue
			}
			d.ask(t, question)
		}
		if seen := d.sightings.all(); len(seen) > 0 {
			t.Errorf("%s: counted %v", unknown.Policy, seen)
		}
		if got := d.ask(t, "?web01\n"); got != "Y 00000010\n"+enc.Empty {
			t.Errorf("got %q", got)
		}
		d.ask(t, "web01\n")
		if seen := d.sightings.all(); len(seen) != 1 || seen[0].Certname != "web01" || seen[0].UID != "u1" || seen[0].Revision == 0 {
			t.Errorf("%s: counted %v", unknown.Policy, seen)
		}
	}
	broken := start(t, failed{}, enc.Unknown{Policy: enc.Blank})
	broken.ask(t, "web01\n")
	if seen := broken.sightings.all(); len(seen) > 0 {
		t.Errorf("counted %v, of a store that can't be read", seen)
	}
}

// Puppet gets sensitive values; who only wants to know must ask for them.
func TestSensitiveValues(t *testing.T) {
	d := start(t, secretive{newStore(t)}, enc.Unknown{Policy: enc.Fail})
	for question, want := range map[string]string{"web01\n": "hunter2", "?web01\n": node.Placeholder, "!web01\n": "hunter2"} {
		if got := d.ask(t, question); !strings.HasSuffix(got, "\"token\": \""+want+"\"\n") {
			t.Errorf("%q: got %q, want %s", question, got, want)
		}
	}
	for _, question := range []string{"?!web01\n", "!?web01\n", "!!web01\n"} {
		if got := d.ask(t, question); !strings.HasPrefix(got, "F ") {
			t.Errorf("%q: got %q", question, got)
		}
	}
}

// secretive gives every node a secret.
type secretive struct{ enc.Source }

func (s secretive) Node(ctx context.Context, name node.Certname) (node.Node, error) {
	n, err := s.Source.Node(ctx, name)
	n.Classification = node.Classification{Parameters: map[string]any{"token": "hunter2"}, Sensitive: []string{"parameters[token]"}}
	return n, err
}

// Clients that say nothing, or half a question, or go, hold up nobody.
func TestSlowClientsBlockNobody(t *testing.T) {
	d := start(t, newStore(t), enc.Unknown{Policy: enc.Fail})
	for i := range maxClients / 2 {
		conn := d.dial(t)
		switch i % 3 {
		case 1:
			io.WriteString(conn, "web")
		case 2:
			conn.Close()
		}
	}
	begin := time.Now()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got := d.ask(t, "web01\n"); !strings.HasPrefix(got, "Y ") {
				t.Errorf("got %q", got)
			}
		})
	}
	wg.Wait()
	if took := time.Since(begin); took >= timeout {
		t.Errorf("50 answers took %v, as if the slow were waited for", took)
	}
}

// A client that never asks is let go, and then there is room for others.
func TestSilentClientsAreLetGo(t *testing.T) {
	t.Parallel()
	d := start(t, newStore(t), enc.Unknown{Policy: enc.Fail})
	var idle []net.Conn
	for range maxClients {
		idle = append(idle, d.dial(t))
	}
	if got := d.ask(t, "web01\n"); !strings.HasPrefix(got, "Y ") {
		t.Errorf("got %q", got)
	}
	for _, conn := range idle {
		if said, err := io.ReadAll(conn); err != nil || len(said) > 0 {
			t.Fatalf("got %q, %v", said, err)
		}
	}
}

// An answer under way is given before Serve returns, and nobody can ask after.
func TestStop(t *testing.T) {
	src := &gate{Source: newStore(t), entered: make(chan struct{}), open: make(chan struct{})}
	d := start(t, src, enc.Unknown{Policy: enc.Fail})
	answer := make(chan string)
	go func() { answer <- d.ask(t, "web01\n") }()
	<-src.entered
	d.cancel()
	close(src.open)
	if got := <-answer; got != "Y 00000010\n"+enc.Empty {
		t.Errorf("got %q", got)
	}
	if err := d.wait(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := os.Stat(d.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

// What ends the listener ends Serve, with an error that names the socket.
func TestListenerFails(t *testing.T) {
	d := start(t, newStore(t), enc.Unknown{})
	d.listener.Close()
	if err := d.wait(); err == nil || !strings.Contains(err.Error(), "enc socket "+d.socket) {
		t.Errorf("got %v", err)
	}
}

// Out of file descriptors, the daemon waits until there are some.
func TestExhaustion(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		d := prepare(t, newStore(t), enc.Unknown{})
		d.run(&failing{UnixListener: d.listener, errs: []error{os.NewSyscallError("accept4", errno), os.NewSyscallError("accept4", errno)}})
		if got := d.ask(t, "web01\n"); !strings.HasPrefix(got, "Y ") {
			t.Errorf("%v: got %q", errno, got)
		}
		if e := d.log.LastEntry(); e == nil || e.Level != logrus.ErrorLevel || !errors.Is(e.Data[logrus.ErrorKey].(error), errno) {
			t.Errorf("%v: logged %v", errno, e)
		}
	}
}

// daemon is a Server that answers on a socket.
type daemon struct {
	server    *Server
	listener  *net.UnixListener
	socket    string
	log       *test.Hook
	sightings *sightings
	cancel    context.CancelFunc
	wait      func() error // until Serve returns, and what it returned
	ctx       context.Context
}

func start(t *testing.T, src enc.Source, unknown enc.Unknown) *daemon {
	t.Helper()
	d := prepare(t, src, unknown)
	d.run(d.listener)
	return d
}

func prepare(t *testing.T, src enc.Source, unknown enc.Unknown) *daemon {
	t.Helper()
	dir := testbed.Dir(t)
	log, hook := test.NewNullLogger()
	d := &daemon{sightings: &sightings{}, socket: filepath.Join(dir, "enc.sock"), log: hook}
	d.server = &Server{Source: src, Unknown: unknown, Sightings: d.sightings, Log: log}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket, Net: "unix"})
	check(t, err)
	d.listener = l
	d.ctx, d.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() { d.cancel(); d.wait() })
	return d
}

func (d *daemon) run(l net.Listener) {
	ended := make(chan error, 1)
	go func() { ended <- d.server.Serve(d.ctx, l) }()
	d.wait = sync.OnceValue(func() error { return <-ended })
}

func (d *daemon) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", d.socket)
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return conn
}

// ask sends a question and returns the whole answer. That the server closes
// with something of the question unread is no error.
func (d *daemon) ask(t *testing.T, question string) string {
	conn, err := net.Dial("unix", d.socket)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(conn, question); err != nil {
		t.Error(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	return string(answer)
}

// newStore is a real store in which web01 is registered.
func newStore(t testing.TB) enc.Source {
	t.Helper()
	engine, err := bolt.Open(filepath.Join(t.TempDir(), "espm.db"), bolt.Options{})
	check(t, err)
	t.Cleanup(func() { engine.Close() })
	st, err := store.New(t.Context(), engine)
	check(t, err)
	c := store.NewChange()
	c.Unaudited()
	c.PutNode(nil, node.Node{Certname: "web01", UID: "u1"})
	_, err = st.Commit(t.Context(), c)
	check(t, err)
	return st
}

// sightings are the nodes that were seen.
type sightings struct {
	mu    sync.Mutex
	nodes []node.Node
}

func (s *sightings) Saw(_ context.Context, n node.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes = append(s.nodes, n)
}

func (s *sightings) all() []node.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nodes)
}

// failed is a Source that can't be read.
type failed struct{ enc.Source }

func (failed) Node(context.Context, node.Certname) (node.Node, error) {
	return node.Node{}, errors.New("disk on fire")
}

// gate is a Source whose first answer waits until the gate is open.
type gate struct {
	enc.Source
	entered, open chan struct{}
}

func (g *gate) Node(ctx context.Context, name node.Certname) (node.Node, error) {
	close(g.entered)
	<-g.open
	return g.Source.Node(ctx, name)
}

// failing is a listener that fails at first.
type failing struct {
	*net.UnixListener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: err}
	}
	return f.UnixListener.Accept()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// panicking is a store that fails once in a way that nobody foresaw.
type panicking struct {
	enc.Source
	once sync.Once
}

func (p *panicking) Node(ctx context.Context, name node.Certname) (node.Node, error) {
	p.once.Do(func() { panic("hunter2") })
	return p.Source.Node(ctx, name)
}

func TestPanicFailsOneQuestion(t *testing.T) {
	d := start(t, &panicking{Source: newStore(t)}, enc.Unknown{Policy: enc.Fail})
	if got := d.ask(t, "web01\n"); got != "" {
		t.Errorf("got %q", got)
	}
	if got := d.ask(t, "web01\n"); !strings.HasPrefix(got, "Y ") {
		t.Errorf("the next question: got %q", got)
	}
	if entries := d.log.AllEntries(); len(entries) != 1 || strings.Contains(fmt.Sprint(entries[0].Message, entries[0].Data), "hunter2") {
		t.Errorf("logged %v", entries)
	}
}
