package main

import (
	"context"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// A caller at its limit is told when to ask again. An answer that is too large
// for it has the same code, without that: it would be too large again.
func TestRetry(t *testing.T) {
	limited, err := status.New(codes.ResourceExhausted, "rate").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		first error
		calls int
	}{
		"at a limit":     {limited.Err(), 2},
		"too large":      {status.Error(codes.ResourceExhausted, "message larger than max"), 1},
		"not permitted":  {status.Error(codes.PermissionDenied, "not permitted"), 1},
		"a done request": {nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			ids := map[string]bool{}
			_, err := retry(t.Context(), func(_ context.Context, id string) (int, error) {
				calls++
				ids[id] = true
				if calls == 1 {
					return 0, test.first
				}
				return 1, nil
			})
			if calls != test.calls || len(ids) != 1 {
				t.Errorf("%d calls with %d ids, want %d with one; %v", calls, len(ids), test.calls, err)
			}
		})
	}
}
