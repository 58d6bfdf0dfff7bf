package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// limitsWith returns the daemon's limits but for one.
func limitsWith(edit func(*Limits)) Limits {
	l := DefaultLimits
	edit(&l)
	return l
}

// endsSoon reads until the server closes a connection, which it must before a minute is over.
func endsSoon(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, err := io.Copy(io.Discard, conn)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Error("the connection is not closed")
	}
}

func (n *networkRig) raw(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", n.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (n *networkRig) rawTLS(t *testing.T, certs ...tls.Certificate) *tls.Conn {
	t.Helper()
	conn := tls.Client(n.raw(t), n.client(certs...))
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return conn
}

// opened reads until the server's settings are there: it took the connection.
func opened(t *testing.T, conn net.Conn) *http2.Framer {
	t.Helper()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := frame.(*http2.SettingsFrame); !ok {
		t.Fatalf("got %v", frame)
	}
	return f
}

// Those who say nothing, or stop in the middle, are closed in time.
func TestSlowClients(t *testing.T) {
	n := newNetworkRig(t, limitsWith(func(l *Limits) { l.Handshake, l.Stranger = 300*time.Millisecond, 600*time.Millisecond }))
	silent := n.raw(t)
	begun := n.raw(t)
	if _, err := begun.Write([]byte{0x16, 0x03, 0x01}); err != nil {
		t.Fatal(err)
	}
	unsaid := n.rawTLS(t) // no HTTP/2
	stranger := n.rawTLS(t)
	opened(t, stranger)
	for _, conn := range []net.Conn{silent, begun, unsaid, stranger} {
		endsSoon(t, conn)
	}
	// Who shows a listed certificate may be idle.
	known := n.rawTLS(t, n.ca.leaf(t, "reader.test", nil))
	f := opened(t, known)
	endsSoon(t, func() net.Conn { c := n.rawTLS(t); opened(t, c); return c }()) // a stranger that came later is gone
	if err := f.WritePing(false, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal("a known client was cut: ", err)
		}
		if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() {
			break
		}
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	n := newNetworkRig(t, limitsWith(func(l *Limits) { l.Idle = 200 * time.Millisecond }))
	conn := n.rawTLS(t, n.ca.leaf(t, "reader.test", nil))
	f := opened(t, conn)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal("closed without a GOAWAY: ", err)
		}
		if _, ok := frame.(*http2.GoAwayFrame); ok {
			break
		}
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	for name, limits := range map[string]Limits{
		"in all":      limitsWith(func(l *Limits) { l.Connections = 3 }),
		"per address": limitsWith(func(l *Limits) { l.PerAddress = 3 }),
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetworkRig(t, limits)
			reader := n.ca.leaf(t, "reader.test", nil)
			var held []net.Conn
			for range 3 {
				conn := n.rawTLS(t, reader)
				opened(t, conn)
				held = append(held, conn)
			}
			endsSoon(t, n.raw(t))
			if err := invoke(t.Context(), n.conn, "espm.v1.NodeService/ListNodes"); err != nil {
				t.Error("the local socket: ", err)
			}
			held[0].Close()
			list := func() error {
				_, err := espmv1.NewNodeServiceClient(n.dial(t, reader)).ListNodes(t.Context(), &espmv1.ListNodesRequest{}, grpc.WaitForReady(true))
				return err
			}
			if err := list(); err != nil {
				t.Error("when one has gone: ", err)
			}
		})
	}
}

func TestPeerNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1/32", "[::ffff:192.0.2.1]:5": "192.0.2.1/32",
		"[2001:db8:1:2:3:4:5:6]:5": "2001:db8:1:2::/64", "[fe80::1%1]:5": "fe80::/64",
	} {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := peerNetwork(tcp); got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
	}
	if got := peerNetwork(&net.UnixAddr{}); got != "" {
		t.Errorf("a local socket: %s", got)
	}
}

// What a connection may carry is told in the server's settings, and held to.
func TestSettings(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	conn := n.rawTLS(t, n.ca.leaf(t, "reader.test", nil))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings := frame.(*http2.SettingsFrame)
	for id, want := range map[http2.SettingID]uint32{http2.SettingMaxConcurrentStreams: 100, http2.SettingMaxHeaderListSize: 16 << 10} {
		if got, _ := settings.Value(id); got != want {
			t.Errorf("%v: got %d, want %d", id, got, want)
		}
	}
}

func TestHeadersAreLimited(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	conn := n.dial(t, n.ca.leaf(t, "reader.test", nil))
	for size, want := range map[int]codes.Code{12 << 10: codes.OK, 32 << 10: codes.Internal} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-much", strings.Repeat("a", size))
		if err := invoke(ctx, conn, "espm.v1.NodeService/ListNodes"); codeOf(err) != want {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestMessagesAreLimited(t *testing.T) {
	r := newRig(t)
	n := &espmv1.Node{Certname: "a.test", Classification: &espmv1.Classification{
		Parameters: map[string]*structpb.Value{"p": structpb.NewStringValue(strings.Repeat("x", maxMessage))},
	}}
	if _, err := r.nodes.RegisterNode(t.Context(), &espmv1.RegisterNodeRequest{Node: n}); codeOf(err) != codes.ResourceExhausted {
		t.Errorf("got %.200v", err)
	}
}

// A client that pings too often is sent away.
func TestPingsAreLimited(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	conn := n.rawTLS(t, n.ca.leaf(t, "reader.test", nil))
	f := opened(t, conn)
	for i := range 10 {
		if err := f.WritePing(false, [8]byte{byte(i)}); err != nil {
			break // it is closed already
		}
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal("closed without a GOAWAY: ", err)
		}
		if away, ok := frame.(*http2.GoAwayFrame); ok {
			if away.ErrCode != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("sent away with %v", away.ErrCode)
			}
			return
		}
	}
}

// A watch whose client reads nothing loses its connection; others go on.
func TestWatchThatDoesNotRead(t *testing.T) {
	n := newNetworkRig(t, limitsWith(func(l *Limits) { l.Stall = 500 * time.Millisecond }))
	conn := n.dial(t, n.ca.leaf(t, "reader.test", nil))
	big := &espmv1.Node{Certname: "a.test", Classification: &espmv1.Classification{
		Parameters: map[string]*structpb.Value{"p": structpb.NewStringValue(strings.Repeat("x", 1<<19))},
	}}
	made := n.register(t, big)
	if _, err := espmv1.NewNodeServiceClient(conn).WatchNodes(t.Context(), &espmv1.WatchNodesRequest{AfterRevision: made.GetRevision() - 1}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b.test", "c.test"} {
		big.Certname = name
		n.register(t, big)
	}
	// The client's library takes no more than its window.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if conn.GetState() == connectivity.Ready && !conn.WaitForStateChange(ctx, connectivity.Ready) {
		t.Fatal("the connection is open still")
	}
	if err := invoke(t.Context(), n.conn, "espm.v1.NodeService/ListNodes"); err != nil {
		t.Error("another's call: ", err)
	}
}
