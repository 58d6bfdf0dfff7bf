package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// Peer is the other end of a connection. A client certificate or the local socket identifies a peer. A token
// identifies the caller of one call, and not a peer.
type Peer struct {
	caller node.Caller // when the connection was set up; without a name if the connection identifies nobody
	proof  *proof      // of the client certificate; nil: none was shown
}

// Listed reports whether the peer had a role without a token when the connection was set up.
func (p *Peer) Listed() bool { return p.caller.Role != "" }

// now returns the caller by the current principals.
func (p *Peer) now() node.Caller {
	if p.proof == nil {
		return p.caller
	}
	c := p.proof.gate.principals.Load().Caller(p.proof.leaf)
	c.Peer = p.caller.Peer
	return c
}

// errPrincipalChanged ends the calls and the connections of a caller whose role or grant has changed.
var errPrincipalChanged = errors.New("the configured principals have changed: the caller has another role or grant now")

// CheckPrincipal returns an error if the peer's role or grant has changed since the connection was set up.
func (p *Peer) CheckPrincipal() error {
	if !p.now().Same(p.caller) {
		return errPrincipalChanged
	}
	return nil
}

// ShowsCertificate reports whether the peer showed a certificate. Without one, Check always returns nil.
func (p *Peer) ShowsCertificate() bool { return p.proof != nil }

// Check returns a *RefusedError if the peer's certificate is no longer accepted. Check is cheap: it reuses the verified
// chains for proofAge, until the CAs or CRLs are read again.
func (p *Peer) Check() error {
	if p.proof == nil {
		return nil
	}
	return p.proof.check()
}

// LocalPeer returns the peer of a connection to the local socket, as the kernel identifies it.
func (g *Gate) LocalPeer(conn syscall.Conn) (*Peer, error) {
	peer, err := PeerOf(conn)
	if err != nil {
		return nil, err
	}
	return &Peer{caller: g.o.Local.Caller(peer)}, nil
}

// NetworkPeer returns the peer of a connection that uses the configuration of TLS. The list shown has the certificates
// that the peer sent, its own first. The list may be empty.
func (g *Gate) NetworkPeer(address string, shown []*x509.Certificate) *Peer {
	p := &Peer{}
	if len(shown) > 0 {
		p.caller, p.proof = g.principals.Load().Caller(shown[0]), &proof{gate: g, leaf: shown[0]}
	}
	p.caller.Peer = address
	return p
}

// TLS returns the configuration of a network listener; nil if the gate has no Trust. Only the gate checks client
// certificates, so that a stranger learns the same from each refusal.
func (g *Gate) TLS() *tls.Config {
	if g.o.Trust == nil {
		return nil
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true, // every connection has to show its certificate
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.o.Trust.pair.Load(), nil },
		VerifyConnection: func(s tls.ConnectionState) error {
			return g.NetworkPeer("", s.PeerCertificates).Check()
		},
	}
}

// RefusedError is the reason for which a client's certificate is refused, for the log only.
type RefusedError struct {
	Subject, Serial string
	Reason          error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("certificate %s of %q: %v", e.Serial, e.Subject, e.Reason)
}

func (e *RefusedError) Unwrap() error { return e.Reason }

// proof is a client's certificate and its last verification.
type proof struct {
	gate *Gate
	leaf *x509.Certificate

	mu     sync.Mutex
	by     *issuers
	at     time.Time
	chains [][]*x509.Certificate
}

// proofAge is how long verified chains are reused while the CAs do not change. A CA of a chain may expire in that time.
const proofAge = 10 * time.Second

// check verifies the chain, the time and the purpose of the certificate. GateOptions.Refused then checks each
// certificate of the chain. If there are several chains, one accepted chain is enough.
func (p *proof) check() error {
	chains, err := p.verified()
	for _, chain := range chains {
		refused := p.gate.refused(chain)
		if refused == nil {
			return nil
		}
		err = errors.Join(err, refused)
	}
	return &RefusedError{Subject: p.leaf.Subject.String(), Serial: fmt.Sprintf("%X", p.leaf.SerialNumber), Reason: err}
}

func (g *Gate) refused(chain []*x509.Certificate) error {
	for i, cert := range chain[:len(chain)-1] {
		if err := g.o.Refused(cert, chain[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// verified returns at least one chain from the certificate to a trusted CA, or an error.
func (p *proof) verified() ([][]*x509.Certificate, error) {
	if p.gate.o.Trust == nil {
		return nil, errors.New("no CA is configured to verify it")
	}
	known, err := p.gate.o.Trust.issuers()
	if err != nil {
		return nil, err
	}
	now := p.gate.o.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if age := now.Sub(p.at); known == p.by && age >= 0 && age < proofAge && now.Before(p.leaf.NotAfter) {
		return p.chains, nil
	}
	p.by = nil
	chains, err := known.verify(p.leaf, now)
	if err != nil {
		return nil, err
	}
	p.by, p.at, p.chains = known, now, chains
	return chains, nil
}
