package health

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/test/testbed"
)

// The daemon before ends while it is asked; the next one answers.
func TestServes(t *testing.T) {
	path := filepath.Join(testbed.Dir(t), "s")
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var ending *grpc.Server
	ending = grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		go ending.Stop()
		<-stream.Context().Done()
		return stream.Context().Err()
	}))
	next := grpc.NewServer()
	defer next.Stop()
	healthv1.RegisterHealthServer(next, health.NewServer())
	before, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_ = ending.Serve(before)
		l, err := net.Listen("unix", path)
		if err == nil {
			err = next.Serve(l)
		}
		failed <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Serves(ctx, conn); err != nil {
		t.Error(err)
	}
	next.Stop()
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

func TestNobodyServes(t *testing.T) {
	conn, err := grpc.NewClient("unix://"+filepath.Join(testbed.Dir(t), "s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Serves(ctx, conn); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
}
