package rpc

import (
	"context"

	"google.golang.org/grpc/stats"
)

// connections implements stats.Handler. When a connection ends, connections ends the contexts of all its calls.
// gRPC never ends the context of a call that tap refused. If the caller set a timeout, that context would keep the
// connection in memory until the timeout.
type connections struct{}

type endKey struct{}

// TagConn returns the context of a connection. The contexts of all calls on the connection are children of that context.
func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	ctx, end := context.WithCancel(ctx)
	return context.WithValue(ctx, endKey{}, end)
}

// HandleConn ends the context of a connection when the connection ends.
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
