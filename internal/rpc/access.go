package rpc

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
)

// admission is that the gate let a call in.
type admission struct {
	*auth.Admission
	conn    *conn
	arrived func() bool // the call's first message is there
}

type admissionKey struct{}

// admissionOf returns the zero admission for a call that did not come through the tap.
func admissionOf(ctx context.Context) admission {
	a, _ := ctx.Value(admissionKey{}).(admission)
	return a
}

// tap asks the gate about a call when its headers are there, before a message is read
// or a handler's goroutine is started, so that a stranger costs little. It
// runs in the connection's own goroutine.
func (e *edge) tap(ctx context.Context, info *tap.Info) (_ context.Context, err error) {
	method := strings.TrimPrefix(info.FullMethodName, "/")
	var c *conn
	defer func() {
		if recover() != nil {
			err = e.answer(&call{method: method}, e.panicked(method))
		}
		if err != nil && c != nil {
			c.refuse(e.limits.Refused)
		}
	}()
	r := auth.Request{Method: method, Unserved: !e.methods[method], Authorization: info.Header.Get("authorization")}
	if p, ok := peer.FromContext(ctx); ok {
		if known, ok := p.AuthInfo.(peerInfo); ok {
			c, r.Peer = known.conn, known.conn.peer
		}
	}
	admitted, err := e.gate.Admit(r)
	if err != nil {
		return ctx, e.told(method, err)
	}
	c.trusted.Store(true)
	a := admission{Admission: admitted, conn: c}
	ctx, a.arrived = e.awaited(ctx)
	return context.WithValue(node.WithCaller(ctx, a.Caller()), admissionKey{}, a), nil
}

// awaited ends a call whose first message is not there in time. gRPC reads that of a
// unary call before it calls any of ours, and would wait for ever.
func (e *edge) awaited(ctx context.Context) (_ context.Context, arrived func() bool) {
	if e.limits.Message <= 0 {
		return ctx, func() bool { return true }
	}
	ctx, end := context.WithCancel(ctx)
	return ctx, time.AfterFunc(e.limits.Message, end).Stop
}

// methods are all that a server has, as the table of permissions spells them.
func methods(s *grpc.Server) map[string]bool {
	all := map[string]bool{}
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			all[service+"/"+m.Name] = true
		}
	}
	return all
}
