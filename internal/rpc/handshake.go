package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/credentials"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
)

// handshakes set a connection up: TLS on the network; on a local socket the
// kernel says who is at the other end. They implement credentials.TransportCredentials.
type handshakes struct {
	access Access
	limits Limits
	tls    credentials.TransportCredentials // nil: there is no network listener
	log    *sparing
	audit  *audit.Log
	now    func() time.Time

	mu  sync.Mutex
	all map[*conn]bool // that showed a certificate
}

func newHandshakes(o Options) *handshakes {
	h := &handshakes{access: o.Access, limits: o.Limits, log: newSparing(o.Log), audit: o.Audit, now: o.Now, all: map[*conn]bool{}}
	if o.Access.Trust != nil {
		h.tls = credentials.NewTLS(o.Access.Trust.Config())
	}
	return h
}

// peerInfo is what the connection itself says of the caller.
type peerInfo struct {
	credentials.CommonAuthInfo
	conn   *conn
	caller node.Caller // without a name where nothing was shown
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "espm" }

// ServerHandshake returns who is at the other end. What was wrong goes to the log alone.
func (h *handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("the listener is none of Listen's")
	}
	if local, ok := c.Conn.(*net.UnixConn); ok {
		return h.local(c, local)
	}
	secure, info, err := h.network(c)
	if err != nil {
		fields := logrus.Fields{"peer": raw.RemoteAddr().String(), "reason": err.Error()}
		if refused, ok := errors.AsType[*auth.RefusedError](err); ok {
			fields["subject"], fields["serial"], fields["reason"] = refused.Subject, refused.Serial, refused.Reason.Error()
		}
		h.log.Warn("a connection was refused", fields)
		h.refused(raw, err)
		return nil, nil, err
	}
	return secure, info, nil
}

// refused leaves an audit line of a connection that showed nothing good. One that
// showed nothing at all, such as a load balancer's probe, is none.
func (h *handshakes) refused(raw net.Conn, err error) {
	if errors.Is(err, io.EOF) {
		return
	}
	who := node.Caller{Peer: raw.RemoteAddr().String()}
	line := audit.Line(node.WithCaller(context.Background(), who), h.now(), node.ActionConnect)
	line.Comment = err.Error()
	h.audit.Refuse(line, "UNAUTHENTICATED")
}

func (h *handshakes) local(c *conn, local *net.UnixConn) (net.Conn, credentials.AuthInfo, error) {
	peer, err := auth.PeerOf(local)
	if err != nil {
		return nil, nil, err
	}
	c.trusted.Store(true)
	return c, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, c, h.access.Local.Caller(peer)}, nil
}

func (h *handshakes) network(c *conn) (net.Conn, credentials.AuthInfo, error) {
	if h.tls == nil {
		return nil, nil, errors.New("there is no TLS configuration")
	}
	secure, info, err := h.tls.ServerHandshake(c)
	if err != nil {
		return nil, nil, err
	}
	state := info.(credentials.TLSInfo).State
	p := peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, c, h.certified(c, state)}
	p.caller.Peer = c.RemoteAddr().String()
	if p.caller.Role != "" {
		c.trusted.Store(true)
	} else if h.limits.Stranger > 0 {
		time.AfterFunc(h.limits.Stranger, func() {
			if !c.trusted.Load() {
				c.Close()
			}
		})
	}
	return secure, p, nil
}

// certified returns the caller of a client certificate, which the handshake verified.
func (h *handshakes) certified(c *conn, state tls.ConnectionState) node.Caller {
	if len(state.PeerCertificates) == 0 {
		return node.Caller{}
	}
	leaf := state.PeerCertificates[0]
	c.proof = h.access.Trust.Prove(leaf)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[c] = true
	return h.access.Principals.Caller(leaf)
}

// recheck is how long a connection may outlive its certificate while it makes
// no call; a call looks by itself.
const recheck = time.Second

// watch cuts connections whose certificate is no longer accepted, until ctx is done.
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
		if err := c.proof.Check(); err != nil {
			h.log.Warn("a connection was cut", logrus.Fields{"peer": c.RemoteAddr().String(), "reason": err.Error()})
			c.Close()
		}
	}
}

// ClientHandshake is not for a server.
func (h *handshakes) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("these are a server's credentials")
}

// Info implements credentials.TransportCredentials.
func (h *handshakes) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "espm"}
}

// Clone implements credentials.TransportCredentials.
func (h *handshakes) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (h *handshakes) OverrideServerName(string) error { return nil }
