// Package faults takes resources away from a running espm: room on its
// disks, a folder for published CRLs. espm must report each failure, lose no
// data, and continue by itself when the resource is back.
package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/enc/encclient"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/health"
	"github.com/espm-project/espm/test/testbed"
)

// server is a real daemon. Its sockets, configuration and log are in run,
// which always has room.
type server struct {
	run, store, ca string // folders; the store's may be any
	published      string // the published copy of the CRL
	cmd            *exec.Cmd
	as             *syscall.Credential // nil: the user of the test
	conn           *grpc.ClientConn
	nodes          espmv1.NodeServiceClient
}

// newServer makes a CA and a configuration, and starts the daemon.
func newServer(t *testing.T, store, caDir, publish string) *server {
	t.Helper()
	s := &server{run: testbed.Dir(t), store: store, ca: caDir, published: publish}
	if err := directory.Create(s.ca, directory.CreateOptions{Host: "puppet.test", Key: ca.ECP256}); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`store: {path: %s/espm.db}
listen: unix://espm.sock
enc: {socket: enc.sock}
authority: {directory: {path: %s, publish: [%s]}}
puppet: {server: puppet.test}
`, s.store, s.ca, s.published)
	if err := os.WriteFile(filepath.Join(s.run, "espm.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	s.conn, err = grpc.NewClient("unix://"+filepath.Join(s.run, "espm.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	s.nodes = espmv1.NewNodeServiceClient(s.conn)
	s.cmd = exec.Command(filepath.Join(testbed.Build(t, "cmd/espm"), "espm"))
	t.Cleanup(func() {
		s.conn.Close()
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", s.log(t))
		}
	})
	s.start(t)
	return s
}

func (s *server) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(s.run, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.cmd.Path, "serve", "--config", filepath.Join(s.run, "espm.yaml"))
	s.cmd.Stderr = log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.serving(t)
}

func (s *server) serving(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := health.Serves(ctx, s.conn); err != nil {
		t.Fatal("the daemon does not serve: ", err)
	}
}

// end stops the daemon in order, with SIGTERM, or kills it.
func (s *server) end(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal("the daemon has ended by itself: ", err)
	}
	if err := s.cmd.Wait(); err != nil && sig == syscall.SIGTERM {
		t.Errorf("an orderly stop: %v", err)
	}
}

func (s *server) log(t *testing.T) string {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(s.run, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

// eventually polls until do succeeds, for a minute at most.
func eventually(t *testing.T, what string, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := do(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within a minute: %s: %v", what, err)
		}
	}
}

// provision retries until it has an answer, like a control plane. The name may be
// taken until espm has revoked the certificate of an earlier try.
func (s *server) provision(t *testing.T, name string) (resp *espmv1.ProvisionNodeResponse) {
	t.Helper()
	eventually(t, "provision "+name, func(ctx context.Context) (err error) {
		resp, err = s.tryProvision(ctx, name)
		return err
	})
	return resp
}

func (s *server) tryProvision(ctx context.Context, name string) (*espmv1.ProvisionNodeResponse, error) {
	return s.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: name}, RequestId: "id-" + name})
}

// revoked terminates and retries until the certificate is revoked.
func (s *server) revoked(t *testing.T, name, uid string) {
	t.Helper()
	eventually(t, "revocation of "+name, func(ctx context.Context) error {
		resp, err := s.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: name, Uid: uid, Wait: durationpb.New(time.Second)})
		for _, r := range resp.GetRevocations() {
			if r.GetState() != espmv1.RevocationState_REVOCATION_STATE_REVOKED {
				err = errors.Join(err, fmt.Errorf("%s is pending", r.GetSerial()))
			}
		}
		return err
	})
}

// noSpace checks that an error asks for a later retry, and names the reason.
func noSpace(t *testing.T, what string, err error) {
	t.Helper()
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("%s: got %v, want UNAVAILABLE for want of space", what, err)
	}
}

// classified checks that the ENC answers, with or without the daemon.
func (s *server) classified(t *testing.T, name, want string) {
	t.Helper()
	c := encclient.Client{Socket: filepath.Join(s.run, "enc.sock"), DB: filepath.Join(s.store, "espm.db")}
	if a := c.Ask(name, time.Now().Add(encclient.Deadline)); a.Status != enc.StatusYAML || a.Text != want {
		t.Errorf("ENC of %s: %c %s, want %s", name, a.Status, a.Text, want)
	}
}
