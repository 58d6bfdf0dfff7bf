// Package health waits for a daemon. It is a package of its own, so that tests that need no gRPC don't link it.
package health

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// Serves waits until the daemon at conn answers, or returns the reason why it did not in time.
// The daemon may still be starting, while an earlier one at the same address is stopping.
func Serves(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		_, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
		if status.Code(err) != codes.Unavailable {
			return err
		}
	}
}
