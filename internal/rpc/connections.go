package rpc

import (
	"context"

	"google.golang.org/grpc/stats"
)

// connections ends what hangs on a connection when that ends. gRPC forgets the
// context of a call that the tap refused without ending it: with a timeout, which the
// caller chooses, it would stay in memory until then, and the connection with it. It implements stats.Handler.
type connections struct{}

type endKey struct{}

// TagConn returns the context of a connection, which those of all its calls come from.
func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	ctx, end := context.WithCancel(ctx)
	return context.WithValue(ctx, endKey{}, end)
}

// HandleConn ends that context with its connection.
func (connections) HandleConn(ctx context.Context, s stats.ConnStats) {
	if _, ended := s.(*stats.ConnEnd); !ended {
		return
	}
	if end, ok := ctx.Value(endKey{}).(context.CancelFunc); ok {
		end()
	}
}

// TagRPC implements stats.Handler.
func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (connections) HandleRPC(context.Context, stats.RPCStats) {}
