package puppetserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/secretfile"
)

// idle is how long an unused connection stays open. It is less than Jetty's 30 s, so
// that a request seldom meets a connection that the server closes.
const idle = 20 * time.Second

// credentials are the client certificate and the trusted CAs, and the connections made with
// them. A changed file is read again.
type credentials struct {
	opts Options

	mu        sync.Mutex
	stamps    []pemfile.Stamp // of certificate, key and CA when they were read
	leaf      *x509.Certificate
	transport *http.Transport

	server atomic.Pointer[string] // the common name in the server's certificate; nil: no connection yet
}

func loadCredentials(o Options) (*credentials, error) {
	c := &credentials{opts: o}
	return c, c.load(c.stampsNow())
}

func (c *credentials) stampsNow() []pemfile.Stamp {
	return pemfile.Stamps(c.opts.Certificate, c.opts.Key, c.opts.CA)
}

// current returns the transport to use. While changed files don't fit each
// other, as in the middle of a renewal, the earlier ones stay in use.
func (c *credentials) current() (*http.Transport, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.stampsNow(); !slices.Equal(now, c.stamps) {
		if err := c.load(now); err != nil {
			c.opts.Log.WithError(err).Warn("the changed client certificate can't be used; espm uses the one before")
		}
	}
	if end := c.leaf.NotAfter; c.opts.Now().After(end) {
		return nil, fmt.Errorf("%w: the client certificate %s (%s) expired at %s: renew it", node.ErrUnavailable,
			c.opts.Certificate, c.leaf.Subject.CommonName, end.UTC().Format(time.RFC3339))
	}
	return c.transport, nil
}

func (c *credentials) load(stamps []pemfile.Stamp) error {
	key, err := secretfile.Read("client key", c.opts.Key)
	if err != nil {
		return fmt.Errorf("%w%s", err, whoReads(err))
	}
	certificate, err := os.ReadFile(c.opts.Certificate)
	if err != nil {
		return fmt.Errorf("client certificate: %w%s", err, whoReads(err))
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("client certificate %s, key %s: %w", c.opts.Certificate, c.opts.Key, err)
	}
	bundle, err := os.ReadFile(c.opts.CA)
	if err != nil {
		return fmt.Errorf("CA bundle: %w%s", err, whoReads(err))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return fmt.Errorf("CA bundle: %s holds no certificate", c.opts.CA)
	}
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
	c.stamps, c.leaf = stamps, pair.Leaf
	c.transport = &http.Transport{
		TLSClientConfig:     &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS12, VerifyConnection: c.noteServer},
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout: 20 * time.Second,
		IdleConnTimeout:     idle,
		MaxIdleConnsPerHost: c.opts.Concurrency,
	}
	return nil
}

// noteServer stores the common name of a server whose certificate is valid.
func (c *credentials) noteServer(s tls.ConnectionState) error {
	c.server.Store(&s.PeerCertificates[0].Subject.CommonName)
	return nil
}

// certificate returns the client certificate.
func (c *credentials) certificate() *x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaf
}

// Credential is the client certificate.
func (a *Authority) Credential() node.Credential {
	leaf := a.credentials.certificate()
	return node.Credential{Kind: node.ClientCertificate, Name: a.opts.Certificate, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
}

// name returns the certname in the client certificate.
func (c *credentials) name() string { return c.certificate().Subject.CommonName }

func (c *credentials) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.transport.CloseIdleConnections()
}

// whoReads names the user that may not read a file: the user that runs espm, not the one
// who reads the error.
func whoReads(err error) string {
	if !errors.Is(err, fs.ErrPermission) {
		return ""
	}
	name := fmt.Sprintf("uid %d", os.Geteuid())
	if u, err := user.Current(); err == nil {
		name = fmt.Sprintf("%s (uid %s)", u.Username, u.Uid)
	}
	return ": espm runs as " + name
}
