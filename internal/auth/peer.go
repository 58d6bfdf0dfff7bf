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

// Peer is who is at the other end of a connection, as far as the connection itself says.
type Peer struct {
	caller node.Caller // as it was when the connection was set up; without a name where nothing was shown
	proof  *proof      // of a client certificate; nil: none was shown
}

// Listed tells whether the peer had a role without a token when the connection was set up.
func (p *Peer) Listed() bool { return p.caller.Role != "" }

// now returns the caller that the connection says, by the principals as they are now.
func (p *Peer) now() node.Caller {
	if p.proof == nil {
		return p.caller
	}
	c := p.proof.gate.principals.Load().Caller(p.proof.leaf)
	c.Peer = p.caller.Peer
	return c
}

// errPrincipalChanged ends calls and connections of a caller that has another role or grant now.
var errPrincipalChanged = errors.New("the configured principals have changed: the caller has another role or grant now")

// CheckPrincipal tells whether the peer still has the role and the grant that it had when the connection was set up.
func (p *Peer) CheckPrincipal() error {
	if !p.now().Same(p.caller) {
		return errPrincipalChanged
	}
	return nil
}

// ShowsCertificate tells whether Check may change its mind.
func (p *Peer) ShowsCertificate() bool { return p.proof != nil }

// Check tells whether the certificate that the peer showed, if any, is still accepted. It costs
// little while nothing has changed. The error is a *RefusedError.
func (p *Peer) Check() error {
	if p.proof == nil {
		return nil
	}
	return p.proof.check()
}

// LocalPeer asks the kernel who is at the other end of a local socket.
func (g *Gate) LocalPeer(conn syscall.Conn) (*Peer, error) {
	peer, err := PeerOf(conn)
	if err != nil {
		return nil, err
	}
	return &Peer{caller: g.o.Local.Caller(peer)}, nil
}

// NetworkPeer returns the peer of a TLS connection with the configuration that TLS returned.
// The certificates are those that the peer showed, its own first; there may be none.
func (g *Gate) NetworkPeer(address string, shown []*x509.Certificate) *Peer {
	p := &Peer{}
	if len(shown) > 0 {
		p.caller, p.proof = g.principals.Load().Caller(shown[0]), &proof{gate: g, leaf: shown[0]}
	}
	p.caller.Peer = address
	return p
}

// TLS is the configuration of a network listener; nil where no certificate is accepted. Client
// certificates are checked by the gate alone, so that a stranger learns the same from each refusal.
func (g *Gate) TLS() *tls.Config {
	if g.o.Trust == nil {
		return nil
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true, // every connection shows its certificate anew
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.o.Trust.pair.Load(), nil },
		VerifyConnection: func(s tls.ConnectionState) error {
			return g.NetworkPeer("", s.PeerCertificates).Check()
		},
	}
}

// RefusedError says why a client's certificate is not accepted. It is for the log.
type RefusedError struct {
	Subject, Serial string
	Reason          error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("certificate %s of %q: %v", e.Serial, e.Subject, e.Reason)
}

func (e *RefusedError) Unwrap() error { return e.Reason }

// proof is a client's certificate, and what it was verified by last.
type proof struct {
	gate *Gate
	leaf *x509.Certificate

	mu     sync.Mutex
	by     *issuers
	at     time.Time
	chains [][]*x509.Certificate
}

// proofAge is how long the chains of a certificate are good without being verified
// anew, where the CAs do not change: one of the chain may expire meanwhile.
const proofAge = 10 * time.Second

// check verifies chain, time and purpose, and asks the gate for each certificate of the chain
// whether it is refused. With several chains one good one is enough.
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

// verified returns the chains from the certificate to a trusted CA: one or more, or an error.
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
