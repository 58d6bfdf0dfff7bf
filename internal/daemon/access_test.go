package daemon

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/espm-project/espm/internal/auth"
)

// The ENC socket answers its one question; no method of the API is there.
func TestENCSocketReachesNoMethod(t *testing.T) {
	_, c := trial(t)
	start(t, c)
	conn, err := grpc.NewClient("unix://"+c.ENC.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, method := range auth.Methods() {
		if err := conn.Invoke(ctx, "/"+method, &emptypb.Empty{}, &emptypb.Empty{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", method, err)
		}
	}
}
