package rpc

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/auth"
)

// Limits bound the use of connections. A zero field sets no limit, except that NewServer needs Handshake, HeaderList and
// Ping.
type Limits struct {
	Connections int           // on one listener
	PerAddress  int           // of one peer: an IPv4 address or an IPv6 /64
	Handshake   time.Duration // from connecting until TLS and HTTP/2 are set up
	Stranger    time.Duration // from then on until a call is let in; none for a listed certificate
	Message     time.Duration // from a call's headers until the first message has arrived
	Refused     int32         // refused calls on a stranger's connection; ten times as many on a trusted one
	Idle        time.Duration // without a call
	Stall       time.Duration // that one message of a stream waits for the reader
	Streams     uint32        // calls at once on a connection
	HeaderList  uint32        // bytes of a call's metadata
	Ping        time.Duration // least time between two keep-alive pings of a client
}

// DefaultLimits are the daemon's limits, as in docs/limits.md.
var DefaultLimits = Limits{
	Connections: 4096,
	PerAddress:  512,
	Handshake:   5 * time.Second,
	Stranger:    10 * time.Second,
	Message:     time.Minute,
	Refused:     100,
	Idle:        30 * time.Minute,
	Stall:       2 * time.Minute,
	Streams:     100,
	HeaderList:  16 << 10,
	Ping:        10 * time.Second,
}

// Listen wraps a listener of the API. A new connection above the limits is closed at once, so that the open connections
// keep working.
func Listen(l net.Listener, limits Limits, log logrus.FieldLogger) net.Listener {
	return &listener{Listener: l, limits: limits, log: auth.NewLimitedLog(log), peers: map[string]int{}}
}

type listener struct {
	net.Listener
	limits Limits
	log    *auth.LimitedLog

	mu    sync.Mutex
	all   int
	peers map[string]int
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := peerNetwork(raw.RemoteAddr())
		if limit := l.enter(peer); limit != "" {
			l.log.Warn("a connection was refused", logrus.Fields{"peer": raw.RemoteAddr().String(), "limit": limit})
			raw.Close()
			continue
		}
		return &conn{Conn: raw, leave: sync.OnceFunc(func() { l.leave(peer) })}, nil
	}
}

// enter counts a connection, or returns the limit that is reached.
func (l *listener) enter(peer string) (limit string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.limits.Connections > 0 && l.all >= l.limits.Connections:
		return "connections"
	case peer != "" && l.limits.PerAddress > 0 && l.peers[peer] >= l.limits.PerAddress:
		return "connections of one address"
	}
	l.all++
	l.peers[peer]++
	return ""
}

func (l *listener) leave(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.peers[peer]--; l.peers[peer] == 0 {
		delete(l.peers, peer)
	}
}

// peerNetwork returns the addresses that count as one peer: one host often has a whole IPv6 /64. For a local
// socket, the result is "".
func peerNetwork(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return ""
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	network, err := ip.WithZone("").Prefix(bits)
	if err != nil {
		return ip.String()
	}
	return network.String()
}

type conn struct {
	net.Conn
	leave   func()
	closed  atomic.Bool
	trusted atomic.Bool // local, or showed a listed certificate, or a call was let in
	refused atomic.Int32
	peer    *auth.Peer // set by the handshake
}

func (c *conn) Close() error {
	c.closed.Store(true)
	c.leave()
	return c.Conn.Close()
}

// refuse counts a refused call, and closes the connection at the limit. Each refused call takes memory until the
// connection ends.
func (c *conn) refuse(limit int32) {
	if c.trusted.Load() {
		limit *= 10
	}
	if limit > 0 && c.refused.Add(1) >= limit {
		c.Close()
	}
}
