package rpc

import (
	"cmp"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/credentials"

	"github.com/espm-project/espm/internal/auth"
)

// handshakes implements credentials.TransportCredentials: TLS for the network, and no encryption for a local socket. The
// gate identifies the peer.
type handshakes struct {
	gate   *auth.Gate
	limits Limits
	tls    credentials.TransportCredentials // nil: there is no network listener
	log    *auth.LimitedLog

	mu  sync.Mutex
	all map[*conn]bool // the connections whose peer showed a certificate
}

func newHandshakes(o Options) *handshakes {
	h := &handshakes{gate: o.Gate, limits: o.Limits, log: auth.NewLimitedLog(o.Log), all: map[*conn]bool{}}
	if config := o.Gate.TLS(); config != nil {
		h.tls = credentials.NewTLS(config)
	}
	return h
}

// peerInfo leads from a call to the connection of the call.
type peerInfo struct {
	credentials.CommonAuthInfo
	conn *conn
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "espm" }

// ServerHandshake sets up a connection and identifies the peer. The cause of a failure goes to the log only.
func (h *handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("the listener was not made by Listen")
	}
	if local, ok := c.Conn.(*net.UnixConn); ok {
		return h.local(c, local)
	}
	secure, info, err := h.network(c)
	if err != nil {
		h.gate.RefuseConnection(raw.RemoteAddr().String(), err)
		return nil, nil, err
	}
	return secure, info, nil
}

func (h *handshakes) local(c *conn, local *net.UnixConn) (_ net.Conn, _ credentials.AuthInfo, err error) {
	if c.peer, err = h.gate.LocalPeer(local); err != nil {
		return nil, nil, err
	}
	c.trusted.Store(true)
	return c, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, c}, nil
}

func (h *handshakes) network(c *conn) (net.Conn, credentials.AuthInfo, error) {
	if h.tls == nil {
		return nil, nil, errors.New("there is no TLS configuration")
	}
	secure, info, err := h.tls.ServerHandshake(c)
	if err != nil {
		return nil, nil, err
	}
	c.peer = h.gate.NetworkPeer(c.RemoteAddr().String(), info.(credentials.TLSInfo).State.PeerCertificates)
	if c.peer.ShowsCertificate() {
		h.mu.Lock()
		h.all[c] = true
		h.mu.Unlock()
	}
	if c.peer.Listed() {
		c.trusted.Store(true)
	} else if h.limits.Stranger > 0 {
		time.AfterFunc(h.limits.Stranger, func() {
			if !c.trusted.Load() {
				c.Close()
			}
		})
	}
	return secure, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, c}, nil
}

// watch closes connections whose certificate is no longer accepted or whose principal has changed, until ctx is done.
// Closing a connection ends all calls and streams on the connection.
func (h *handshakes) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(recheck):
			h.cut()
		}
	}
}

func (h *handshakes) cut() {
	h.mu.Lock()
	var all []*conn
	for c := range h.all {
		if c.closed.Load() {
			delete(h.all, c)
			continue
		}
		all = append(all, c)
	}
	h.mu.Unlock()
	for _, c := range all {
		if err := cmp.Or(c.peer.Check(), c.peer.CheckPrincipal()); err != nil {
			h.log.Warn("a connection was cut", logrus.Fields{"peer": c.RemoteAddr().String(), "reason": err.Error()})
			c.Close()
		}
	}
}

// ClientHandshake always fails: handshakes is for servers only.
func (h *handshakes) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a server's credentials can't connect as a client")
}

// Info implements credentials.TransportCredentials.
func (h *handshakes) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "espm"}
}

// Clone implements credentials.TransportCredentials.
func (h *handshakes) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (h *handshakes) OverrideServerName(string) error { return nil }
