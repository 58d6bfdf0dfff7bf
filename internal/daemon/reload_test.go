package daemon

import (
	"bytes"
	"context"
	"io"
	"os"
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
	"github.com/espm-project/espm/internal/enc/encclient"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// journal is a log that can be waited for.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
	grew chan struct{}
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.grew)
	j.grew = make(chan struct{})
	return j.text.Write(p)
}

// wait returns all that was logged up to a line with the text, and forgets it.
func (j *journal) wait(t *testing.T, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		j.mu.Lock()
		all, grew := j.text.String(), j.grew
		if strings.Contains(all, text) {
			j.text.Reset()
			j.mu.Unlock()
			return all
		}
		j.mu.Unlock()
		select {
		case <-grew:
		case <-ctx.Done():
			t.Fatalf("%q was not logged: %s", text, all)
		}
	}
}

func TestReload(t *testing.T) {
	_, c := trial(t)
	j := &journal{grew: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c, j) }()
	t.Cleanup(func() { cancel(); <-ended })
	j.wait(t, "espm serves")
	good, err := os.ReadFile(c.File)
	if err != nil {
		t.Fatal(err)
	}
	good = append(good, "certificates: {key_pool: 0}\n"...) // as trial has it
	reload := func(text, says string) string {
		t.Helper()
		if err := os.WriteFile(c.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		return j.wait(t, says)
	}
	client := encclient.Client{Socket: c.ENC.Socket, DB: c.Store.Path}
	if code := client.Run("stranger.test", io.Discard); code == 0 {
		t.Error("unknown nodes are let in from the start")
	}

	changed := strings.Replace(string(good), "unknown_nodes: fail", "unknown_nodes: empty", 1)
	changed = strings.Replace(changed, "  - puppet.test", "  - puppet.test\n  - db.test", 1)
	changed = strings.Replace(changed, "port: 8140", "port: 8141", 1) + "log: {level: debug, format: json}\n"

	said := reload(changed+"nonsense: 1\n", "the configuration is refused")
	if !strings.Contains(said, "nonsense") || client.Run("stranger.test", io.Discard) == 0 {
		t.Errorf("a bad file: %s", said)
	}
	said = reload(changed, "the configuration was read again")
	for _, setting := range []string{"enc.unknown_nodes", "protected_certnames", "log.level", "log.format"} {
		if !strings.Contains(said, `has changed, and takes effect from now on","setting":"`+setting) {
			t.Errorf("%s: %s", setting, said)
		}
	}
	if !strings.Contains(said, `takes effect when espm is restarted","setting":"puppet.port"`) || !strings.Contains(said, `"changed":5`) {
		t.Error(said)
	}
	if code := client.Run("stranger.test", io.Discard); code != 0 {
		t.Error("enc.unknown_nodes has no effect")
	}
	conn, err := grpc.NewClient(c.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	nodes := espmv1.NewNodeServiceClient(conn)
	if _, err := nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "db.test"}}); err != nil {
		t.Fatal(err)
	}
	_, err = nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: "db.test"})
	if status.Code(err) != codes.FailedPrecondition && status.Code(err) != codes.PermissionDenied {
		t.Errorf("terminating a protected name: %v", err)
	}
	// What needs a restart is told as long as there was none; what is back is no change.
	if said = reload(changed, "the configuration was read again"); !strings.Contains(said, "puppet.port") || !strings.Contains(said, `"changed":1`) {
		t.Error(said)
	}
	if said = reload(string(good), "the configuration was read again"); strings.Contains(said, "puppet.port") {
		t.Error(said)
	}
	if code := client.Run("stranger.test", io.Discard); code == 0 {
		t.Error("enc.unknown_nodes: fail has no effect")
	}
}

// Each setting that is said to take effect at once does reach what runs.
func TestPartsAreMixed(t *testing.T) {
	one := config.Config{}
	two := config.Config{ENC: config.ENC{UnknownNodes: "x", Command: "x"}, Protected: []string{"x"}, Principals: []config.Principal{{Certname: "x"}}, Log: config.Log{Level: "x", Format: "x"}}
	if left := config.Diff(mix(one, two), two); len(left) > 0 {
		t.Errorf("%q is not taken over", left)
	}
	said := map[string]bool{}
	for _, p := range parts {
		for _, s := range p.settings {
			said[s] = true
		}
	}
	for _, s := range config.Diff(one, two) {
		if !said[s] {
			t.Errorf("%s is taken over, but no part says so", s)
		}
	}
}
