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
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"

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

// A stranger's call keeps nothing in memory when its connection is gone,
// whatever timeout it had.
func TestRefusedCallsEndWithTheirConnection(t *testing.T) {
	conn := connections{}.TagConn(t.Context(), nil)
	call, cancel := context.WithTimeout(conn, 99999999*time.Second)
	defer cancel()
	connections{}.HandleConn(conn, &stats.ConnBegin{})
	if call.Err() != nil {
		t.Fatal("the call ended with the beginning of its connection")
	}
	connections{}.HandleConn(conn, &stats.ConnEnd{})
	<-call.Done()
}

// A connection and a call of a stranger read nothing from the store; the first call that is let in does.
func TestStrangersCostNoRead(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	reader := n.token(t, "known", espmv1.Role_ROLE_READER, nil)
	n.stop()
	n.working.Wait() // so that nobody else reads
	plain, other := n.dial(t), n.dial(t, n.ca.leaf(t, "other.test", nil))
	forged := bearing(t, "espm_"+strings.Repeat("A", 43))
	for _, c := range []struct {
		name  string
		conn  *grpc.ClientConn
		ctx   context.Context
		want  codes.Code
		reads bool
	}{
		{"no certificate", plain, t.Context(), codes.Unauthenticated, false},
		{"a certificate of another CA", n.dial(t, foreign(t).leaf(t, "reader.test", nil)), t.Context(), codes.Unavailable, false},
		{"a certificate that is not listed", other, t.Context(), codes.PermissionDenied, false},
		{"a forged token", plain, forged, codes.Unauthenticated, false},
		{"a forged token beside a certificate", other, forged, codes.Unauthenticated, false},
		{"a token", plain, reader, codes.OK, true},
		{"a certificate", n.dial(t, n.ca.leaf(t, "reader.test", nil)), t.Context(), codes.OK, true},
	} {
		before := n.reads.Load()
		err := invoke(c.ctx, c.conn, "espm.v1.NodeService/ListNodes")
		if reads := n.reads.Load() - before; codeOf(err) != c.want || (reads > 0) != c.reads {
			t.Errorf("%s: %v after %d reads, want %v", c.name, err, reads, c.want)
		}
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
