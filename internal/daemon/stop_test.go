package daemon

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/health"
)

func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		hung := make(chan struct{})
		begun := time.Now()
		time.AfterFunc(time.Hour, stop)
		err := bounded(ctx, stopWithin, func() error { <-hung; return nil })
		if took := time.Since(begun); err == nil || took != time.Hour+stopWithin {
			t.Errorf("got %v after %v", err, took)
		}
		close(hung)
		late := errors.New("late")
		if err := bounded(ctx, stopWithin, func() error { time.Sleep(time.Second); return late }); !errors.Is(err, late) {
			t.Errorf("got %v", err)
		}
	})
}

// A call hangs in a file system that does not answer, so it ignores the end of its context. The process ends all the
// same, and the next start takes the sockets and the store.
func TestStopWithAHungCall(t *testing.T) {
	if testing.Short() {
		t.Skip("-short leaves out a stop that waits for a hung call")
	}
	dir, c := trial(t)
	pipe := filepath.Join(c.Authority.Directory.Path, "signed", "hung.test.pem")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env, child.Stdout = append(os.Environ(), childConfig+"="+filepath.Join(dir, "espm.yaml")), &out
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(c.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := health.Serves(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = espmv1.NewNodeServiceClient(conn).ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "hung.test"}})
	}()
	// The open of a pipe for writing succeeds once somebody has it open for reading: the call hangs in its read then.
	held, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	begun := time.Now()
	if err := child.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = child.Wait()
	took := time.Since(begun)
	t.Logf("the process ended after %v: %s", took, &out)
	if err == nil || took < drain || took > time.Minute || !strings.HasPrefix(out.String(), "stop: ") {
		t.Errorf("got %v after %v: %s", err, took, &out)
	}
	if err := os.Remove(pipe); err != nil {
		t.Fatal(err)
	}
	_, stop := start(t, c)
	if err := stop(); err != nil {
		t.Error(err)
	}
}
