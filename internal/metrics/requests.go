package metrics

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// Requests returns the option by which a gRPC server counts its calls. It counts refused calls, which no handler
// gets, too.
func (m *Metrics) Requests() grpc.ServerOption { return grpc.StatsHandler(requests{m}) }

type requests struct{ *Metrics }

type methodKey struct{}

func (r requests) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, methodKey{}, info.FullMethodName)
}

func (r requests) HandleRPC(ctx context.Context, s stats.RPCStats) {
	end, ok := s.(*stats.End)
	if !ok {
		return
	}
	method, _ := ctx.Value(methodKey{}).(string)
	r.requests.WithLabelValues(method, status.Code(end.Error).String()).Inc()
	r.requestTime.WithLabelValues(method).Observe(end.EndTime.Sub(end.BeginTime).Seconds())
}

func (r requests) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (r requests) HandleConn(context.Context, stats.ConnStats) {}
