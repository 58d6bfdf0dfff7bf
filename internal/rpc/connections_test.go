package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// begin sends the headers of a call, without its message; whole says that none will come.
func begin(t *testing.T, f *http2.Framer, stream uint32, path string, whole bool, headers map[string]string) {
	t.Helper()
	all := []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "localhost"},
		{Name: ":path", Value: path}, {Name: "content-type", Value: "application/grpc"},
	}
	for name, value := range headers {
		all = append(all, hpack.HeaderField{Name: name, Value: value})
	}
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, h := range all {
		if err := e.WriteField(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndStream: whole, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
}

// ended reads until a call has ended, and returns its status; false where the connection ended.
func ended(f *http2.Framer) (status string, ok bool) {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return "", false
		}
		if h, ok := frame.(*http2.MetaHeadersFrame); ok && h.StreamEnded() {
			for _, field := range h.Fields {
				if field.Name == "grpc-status" {
					status = field.Value
				}
			}
			return status, true
		}
	}
}

// contexts keeps the contexts of calls with a token.
type contexts struct {
	auth.TokenStore
	seen chan context.Context
}

func (c contexts) TokenByHash(ctx context.Context, hash string) (node.Token, error) {
	c.seen <- ctx
	return c.TokenStore.TokenByHash(ctx, hash)
}

// A stranger's call keeps nothing in memory when its connection is gone,
// whatever timeout it had.
func TestRefusedCallsEndWithTheirConnection(t *testing.T) {
	seen := make(chan context.Context, 1)
	n := newNetworkRig(t, DefaultLimits, func(a *Access) {
		a.Tokens = auth.NewTokens(contexts{a.Records.(auth.TokenStore), seen}, a.Records.(auth.TokenUses), time.Now, discard())
	})
	conn := n.rawTLS(t)
	f := opened(t, conn)
	begin(t, f, 1, "/espm.v1.NodeService/GetNode", true, map[string]string{"grpc-timeout": "99999999H", "authorization": "Bearer espm_" + strings.Repeat("A", 43)})
	if status, ok := ended(f); !ok || status != "16" {
		t.Fatalf("got %q, %v", status, ok)
	}
	conn.Close()
	select {
	case <-(<-seen).Done():
	case <-time.After(time.Minute):
		t.Error("the context of a refused call outlives its connection")
	}
}

// Who is refused time after time loses the connection; a stranger sooner.
func TestManyRefusedCalls(t *testing.T) {
	n := newNetworkRig(t, limitsWith(func(l *Limits) { l.Refused = 3 }))
	for _, c := range []struct {
		who   string
		shows []tls.Certificate
		calls int
	}{
		{"a stranger", nil, 3},
		{"a reader", []tls.Certificate{n.ca.leaf(t, "reader.test", nil)}, 30},
	} {
		conn := n.rawTLS(t, c.shows...)
		f := opened(t, conn)
		for i := range c.calls {
			begin(t, f, uint32(2*i+1), "/espm.v1.NodeService/RegisterNode", true, nil)
			if _, ok := ended(f); !ok && i < c.calls-1 {
				t.Fatalf("%s: the connection ended after %d calls", c.who, i+1)
			}
		}
		endsSoon(t, conn)
	}
}

// A call of one who is let in ends where its message does not come; one
// whose message is there goes on.
func TestMessagesThatDoNotCome(t *testing.T) {
	n := newNetworkRig(t, limitsWith(func(l *Limits) { l.Message = time.Second }))
	admin := n.ca.leaf(t, "admin.test", nil)
	watch, err := espmv1.NewNodeServiceClient(n.dial(t, admin)).WatchNodes(t.Context(), &espmv1.WatchNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	conn := n.rawTLS(t, admin)
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	f := opened(t, conn)
	begin(t, f, 1, "/espm.v1.NodeService/RegisterNode", false, nil)
	begin(t, f, 3, "/espm.v1.NodeService/WatchNodes", false, nil)
	for range 2 {
		if status, ok := ended(f); !ok || status != "1" {
			t.Errorf("got %q, %v", status, ok)
		}
	}
	n.provision(t, "new.test", "") // the watch began before the two calls, and is there still
	if ev, err := watch.Recv(); err != nil {
		t.Errorf("the watch ended: %v, %v", ev, err)
	}
}
