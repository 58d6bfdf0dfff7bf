package puppetserver

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// errUnguarded: nothing was sent, as the server may let a CSR take a name away.
var errUnguarded = errors.New("it is not known that the server refuses a CSR under a taken name")

// guard knows whether the server refuses a CSR under a name that is taken. It
// does, unless ca.conf has allow-duplicate-certs; then it replaces what stands
// there. ca.conf is read when the server starts, which ends every connection. So
// what was learnt holds until a new connection is made. The guard watches the connections for
// CSRs alone, so that a CSR under way keeps no other call from connecting.
type guard struct {
	mu     sync.RWMutex // held to read by guarded calls: no connection begins meanwhile
	dials  atomic.Int64 // connections begun, and those that came of it
	learnt atomic.Int64 // dials when the server was last seen to refuse; 0: never
}

type dial func(ctx context.Context, network, address string) (net.Conn, error)

// guardedCall marks the context of a call that must not make a connection.
type guardedCall struct{}

// dialer counts connections before and after they are made, and makes none for a guarded call.
func (g *guard) dialer(d dial) dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if ctx.Value(guardedCall{}) != nil {
			return nil, errUnguarded
		}
		g.dialed()
		defer g.dialed() // what is learnt meanwhile may be of the server before
		return d(ctx, network, address)
	}
}

func (g *guard) dialed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dials.Add(1)
}

// enter begins a guarded call, if the server is known to refuse; call leave
// after it. The call has to make do with the connections that there are: where
// all are in use it fails with errUnguarded.
func (g *guard) enter(ctx context.Context) (guarded context.Context, ok bool) {
	if !g.mu.TryRLock() {
		return nil, false
	}
	if learnt := g.learnt.Load(); learnt == 0 || learnt != g.dials.Load() {
		g.leave()
		return nil, false
	}
	return context.WithValue(ctx, guardedCall{}, true), true
}

func (g *guard) leave() { g.mu.RUnlock() }

// learn finds out whether the server refuses a CSR under a taken name. It sends
// a CSR for a name that espm has just taken, to the URL of another name, which no node can have.
// The server checks the name in the CSR first. If it does not refuse that name, it
// refuses the CSR because the URL has another name. Nothing changes either way.
func (a *signer) learn(ctx context.Context, csr []byte) {
	g := &a.credentials.guard
	dials := g.dials.Load()
	c := call{method: http.MethodPut, path: apiPath + "certificate_request/" + nobody, body: csr, kind: "text/plain", submits: true}
	got, err := a.do(ctx, c)
	if err == nil && got.code == http.StatusBadRequest && strings.Contains(string(got.body), "already has a") {
		g.learnt.Store(dials) // does not count if there were more meanwhile
	}
}
