package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/setup"
	"github.com/espm-project/espm/internal/site"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/health"
	"github.com/espm-project/espm/test/testbed"
)

// The test binary runs itself as a daemon of another user.
const childConfig = "ESPM_DAEMON_TEST_CONFIG"

func TestMain(m *testing.M) {
	path := os.Getenv(childConfig)
	if path == "" {
		os.Exit(m.Run())
	}
	c, err := config.Load(path)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = Run(ctx, c, io.Discard)
	}
	if err != nil {
		os.Stdout.WriteString(err.Error())
		os.Exit(1)
	}
}

// trial makes everything under a folder of its own.
func trial(t *testing.T) (string, config.Config) {
	t.Helper()
	dir := testbed.Dir(t)
	made, err := setup.Init(t.Context(), setup.InitOptions{Dir: dir, Certname: "puppet.test", CAKey: "ec-p256"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	*c.Issue.KeyPool = 0
	return dir, c
}

// start runs a daemon until stop, which returns what Run did.
func start(t *testing.T, c config.Config) (conn *grpc.ClientConn, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c, io.Discard) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = stop() })
	conn, err := grpc.NewClient(c.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	wait, cancelWait := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancelWait()
	if err := health.Serves(wait, conn); err != nil {
		t.Fatalf("the daemon does not serve: %v", errors.Join(err, stop()))
	}
	return conn, stop
}

func revision(t *testing.T, c config.Config) int64 {
	t.Helper()
	r, err := bolt.OpenReader(c.Store.Path, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	v, err := store.NewView(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := v.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestStopsAndStartsAgain(t *testing.T) {
	_, c := trial(t)
	conn, stop := start(t, c)
	if _, err := espmv1.NewNodeServiceClient(conn).RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "a.test"}}); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Error("an orderly stop: ", err)
	}
	before := revision(t, c)
	conn, stop = start(t, c)
	if _, err := espmv1.NewNodeServiceClient(conn).GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: "a.test"}); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error("an orderly stop: ", err)
	}
	if after := revision(t, c); after != before {
		t.Errorf("starting wrote to the store, which it can't do on a full disk: revision %d, was %d", after, before)
	}
}

// Someone always watches: a restart must not wait for them.
func TestStopDoesNotWaitForWatches(t *testing.T) {
	_, c := trial(t)
	conn, stop := start(t, c)
	nodes := espmv1.NewNodeServiceClient(conn)
	n, err := nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "a.test"}})
	if err != nil {
		t.Fatal(err)
	}
	w, err := nodes.WatchNodes(t.Context(), &espmv1.WatchNodesRequest{AfterRevision: n.GetNode().GetRevision() - 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took >= drain {
		t.Errorf("the stop took %v", took)
	}
	if _, err := w.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
}

func TestUnreadableCAKey(t *testing.T) {
	_, other := trial(t)
	foreign, err := os.ReadFile(filepath.Join(other.Authority.Directory.Path, "ca_key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(data []byte, mode os.FileMode) func(string) error {
		return func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path, data, mode))
		}
	}
	for name, c := range map[string]struct {
		spoil func(path string) error
		says  string
	}{
		"missing":           {os.Remove, "no such file"},
		"folder":            {func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, "ca_key.pem"},
		"empty":             {write(nil, 0o600), "holds no PEM block"},
		"garbage":           {write([]byte("hello"), 0o600), "holds no PEM block"},
		"broken":            {write([]byte("-----BEGIN EC PRIVATE KEY-----\naGVsbG8=\n-----END EC PRIVATE KEY-----\n"), 0o600), "can't be read"},
		"another's":         {write(foreign, 0o600), "key does not belong to"},
		"open to everybody": {func(p string) error { return os.Chmod(p, 0o644) }, "open to everybody (mode 0644)"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, cfg := trial(t)
			key := filepath.Join(cfg.Authority.Directory.Path, "ca_key.pem")
			good, err := os.ReadFile(key)
			if err != nil {
				t.Fatal(err)
			}
			before := testbed.Contents(t, dir)
			if err := c.spoil(key); err != nil {
				t.Fatal(err)
			}
			err = Run(t.Context(), cfg, io.Discard)
			if err == nil || !strings.HasPrefix(err.Error(), "authority: ") || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line on the authority with %q", err, c.says)
			}
			if err := errors.Join(os.RemoveAll(key), os.WriteFile(key, good, 0o600)); err != nil {
				t.Fatal(err)
			}
			for path, data := range testbed.Contents(t, dir) {
				if !bytes.Equal(data, before[path]) && filepath.Base(path) != "espm.lock" {
					t.Errorf("%s was changed", path)
				}
			}
			_, stop := start(t, cfg) // once mended
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A daemon that was killed at a backup leaves a copy of the whole store; the next one removes it at its start.
func TestKilledBackup(t *testing.T) {
	dir, c := trial(t)
	left := c.Store.Path + ".backup-123456"
	other := filepath.Join(dir, "other.db"+".backup-"+"1")
	if err := errors.Join(os.WriteFile(left, nil, 0o600), os.WriteFile(other, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	_, stop := start(t, c)
	if site.Exists(left) || !site.Exists(other) {
		t.Errorf("it stayed: %v; another's stayed: %v", site.Exists(left), site.Exists(other))
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
