package encclient

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/enc/encsock"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/test/testbed"
)

// childEnv makes the test binary an espm-enc, to be run as another user.
const childEnv = "ESPM_TEST_ENC"

func TestMain(m *testing.M) {
	if files := os.Getenv(childEnv); files != "" {
		socket, db, _ := strings.Cut(files, ",")
		os.Exit(Client{Socket: socket, DB: db}.Run(os.Args[1], os.Stdout))
	}
	os.Exit(m.Run())
}

// site is a machine with espm's store, in which web01 is registered, and
// perhaps a daemon.
type site struct {
	Client
	counter
	stop func() // ends what start started
}

// counter counts the catalogs that the daemon answered for.
type counter struct{ seen atomic.Int64 }

func (c *counter) Saw(context.Context, node.Node) { c.seen.Add(1) }

const webYAML = "---\nenvironment: \"production\"\nclasses:\n  \"ntp\": {}\nparameters:\n  \"role\": \"web\"\n"

func newSite(t *testing.T, unknown enc.Unknown) *site {
	t.Helper()
	dir := testbed.Dir(t)
	s := &site{Client: Client{Socket: filepath.Join(dir, "enc.sock"), DB: filepath.Join(dir, "espm.db")}}
	engine, st := s.open(t)
	check(t, st.SetENC(t.Context(), store.ENCSettings{UnknownNodes: unknown.Policy, Command: unknown.Command}))
	c := store.NewChange()
	c.Unaudited()
	c.PutNode(nil, node.Node{Certname: "web01", UID: "u1", Classification: node.Classification{
		Environment: "production",
		Classes:     map[string]map[string]any{"ntp": nil},
		Parameters:  map[string]any{"role": "web"},
	}})
	c.PutNode(nil, node.Node{Certname: "torn", UID: "u2", Groups: []string{"gone"}})
	_, err := st.Commit(t.Context(), c)
	check(t, err)
	check(t, engine.Close())
	return s
}

func (s *site) open(t *testing.T) (*bolt.Engine, *store.Store) {
	t.Helper()
	engine, err := bolt.Open(s.DB, bolt.Options{})
	check(t, err)
	t.Cleanup(func() { engine.Close() })
	st, err := store.New(t.Context(), engine)
	check(t, err)
	return engine, st
}

func (s *site) listen(t *testing.T) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Socket, Net: "unix"})
	check(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// start runs a daemon's part: the open store and the ENC socket.
func (s *site) start(t *testing.T, unknown enc.Unknown) {
	t.Helper()
	engine, st := s.open(t)
	log := logrus.New()
	log.SetOutput(io.Discard)
	server := &encsock.Server{Source: st, Unknown: unknown, Sightings: &s.counter, Log: log}
	ctx, cancel := context.WithCancel(t.Context())
	l := s.listen(t)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	s.stop = func() {
		cancel()
		check(t, <-served)
		check(t, engine.Close())
	}
}

// serve lets talk speak to every client that connects. A connection that talk
// leaves open stays so until the test ends.
func (s *site) serve(t *testing.T, talk func(net.Conn)) {
	t.Helper()
	l := s.listen(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() }) // and no finalizer before
			go talk(conn)
		}
	}()
}

// ask runs espm-enc. What it prints must be YAML and exit code 0, or one line and exit code 1.
func (s *site) ask(t *testing.T, name string) (code int, out string) {
	t.Helper()
	var stdout strings.Builder
	code = s.Run(name, &stdout)
	out = stdout.String()
	if code != 0 && strings.Count(out, "\n") != 1 || code == 0 && strings.HasPrefix(out, "espm:") {
		t.Errorf("exit code %d, output %q", code, out)
	}
	return code, out
}

// expect runs espm-enc and checks how it ends.
func (s *site) expect(t *testing.T, name string, code int, out string) {
	t.Helper()
	gotCode, got := s.ask(t, name)
	if gotCode != code || got != out {
		t.Errorf("%q: exit code %d, output %q\nwant %d, %q", name, gotCode, got, code, out)
	}
}

// expectReason runs espm-enc, which must fail with a line that has all parts.
func (s *site) expectReason(t *testing.T, name string, parts ...string) {
	t.Helper()
	code, got := s.ask(t, name)
	if code != 1 || !strings.HasPrefix(got, "espm: ") {
		t.Errorf("%q: exit code %d, output %q", name, code, got)
	}
	for _, part := range parts {
		if !strings.Contains(got, part) {
			t.Errorf("%q: got %q, which says nothing of %q", name, got, part)
		}
	}
}

// within checks that fn takes at least the one and at most, on a busy
// machine, the other.
func within(t *testing.T, least, most time.Duration, fn func()) {
	t.Helper()
	begin := time.Now()
	fn()
	if took := time.Since(begin); took < least || took > most {
		t.Errorf("took %v, want %v to %v", took, least, most)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
