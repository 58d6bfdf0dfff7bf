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

// admission is a call that the gate let in, with the connection of the call.
type admission struct {
	*auth.Admission
	conn    *conn
	arrived func() bool // must be called when the call's first message has arrived
}

type admissionKey struct{}

// admissionOf returns the zero admission for a call that did not come through the tap.
func admissionOf(ctx context.Context) admission {
	a, _ := ctx.Value(admissionKey{}).(admission)
	return a
}

// tap asks the gate about a call as soon as the headers have arrived. gRPC has not yet read a message or started a
// goroutine, so a stranger's call costs little. tap runs in the connection's goroutine, and must not block.
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
		return ctx, e.statusOf(method, err)
	}
	c.trusted.Store(true)
	a := admission{Admission: admitted, conn: c}
	ctx, a.arrived = e.awaited(ctx)
	return context.WithValue(node.WithCaller(ctx, a.Caller()), admissionKey{}, a), nil
}

// awaited ends a call whose first message does not arrive within Limits.Message. gRPC reads the message of a unary call
// before the interceptor runs, and sets no limit to the wait.
func (e *edge) awaited(ctx context.Context) (_ context.Context, arrived func() bool) {
	if e.limits.Message <= 0 {
		return ctx, func() bool { return true }
	}
	ctx, end := context.WithCancel(ctx)
	return ctx, time.AfterFunc(e.limits.Message, end).Stop
}

// methods returns the methods of a server, as the table of permissions spells them.
func methods(s *grpc.Server) map[string]bool {
	all := map[string]bool{}
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			all[service+"/"+m.Name] = true
		}
	}
	return all
}
