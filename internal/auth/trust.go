package auth

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/secretfile"
)

// Files are what the network listener works with, in PEM. Each may be
// replaced while the daemon runs.
type Files struct {
	Certificate, Key string // the server's
	CA               string // of the clients' certificates: the whole chain
	CRL              string // of each CA in it
}

// Trust holds the server's certificate, and checks those of clients. Files
// are read again when they change.
type Trust struct {
	files Files
	now   func() time.Time
	log   logrus.FieldLogger

	mu        sync.Mutex
	pair      *tls.Certificate
	pairStamp []pemfile.Stamp
	issuers   *issuers
	issuerErr error // why no client certificate can be checked
	caStamp   []pemfile.Stamp
}

// NewTrust reads the files. A server's certificate or a CA that can't be read
// is an error. A CRL that is missing is not: no client certificate is
// accepted until it is there.
func NewTrust(files Files, now func() time.Time, log logrus.FieldLogger) (*Trust, error) {
	t := &Trust{files: files, now: now, log: log}
	if _, err := t.certificate(); err != nil {
		return nil, err
	}
	if _, err := readCAs(files.CA); err != nil {
		return nil, err
	}
	if _, err := t.current(); err != nil {
		log.WithError(err).Error("no client certificate is accepted")
	}
	return t, nil
}

// Config is for a TLS listener. Client certificates are checked by Verify
// alone, so that a stranger learns the same from each refusal.
func (t *Trust) Config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true, // every connection shows its certificate anew
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.certificate() },
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil
			}
			return t.Verify(s.PeerCertificates[0])
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

// Verify checks a client's certificate as of now: chain, time, purpose, and
// the CRL of every CA above it. What can't be checked is refused. The error
// is a *RefusedError.
func (t *Trust) Verify(leaf *x509.Certificate) error {
	known, err := t.current()
	if err == nil {
		err = known.check(leaf, t.now())
	}
	if err != nil {
		return &RefusedError{Subject: leaf.Subject.String(), Serial: fmt.Sprintf("%X", leaf.SerialNumber), Reason: err}
	}
	return nil
}

// current returns the CAs and their CRLs as the files are now.
func (t *Trust) current() (*issuers, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := pemfile.Stamps(t.files.CA, t.files.CRL)
	if slices.Equal(now, t.caStamp) {
		return t.issuers, t.issuerErr
	}
	first := t.caStamp == nil
	t.caStamp = now // of before the reading: a change in between is seen the next time
	t.issuers, t.issuerErr = readIssuers(t.files.CA, t.files.CRL)
	switch {
	case first:
	case t.issuerErr != nil:
		t.log.WithError(t.issuerErr).Error("no client certificate is accepted until this is mended")
	default:
		t.log.WithFields(logrus.Fields{"ca": t.files.CA, "crl": t.files.CRL}).Info("CA and CRL read again")
	}
	return t.issuers, t.issuerErr
}

// certificate returns the server's, as the files are now. A new pair that
// can't be used leaves the old one in use.
func (t *Trust) certificate() (*tls.Certificate, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := pemfile.Stamps(t.files.Certificate, t.files.Key)
	if slices.Equal(now, t.pairStamp) && t.pair != nil {
		return t.pair, nil
	}
	first := t.pair == nil
	t.pairStamp = now
	pair, err := secretfile.X509KeyPair("server key", t.files.Certificate, t.files.Key)
	log := t.log.WithFields(logrus.Fields{"certificate": t.files.Certificate, "key": t.files.Key})
	switch {
	case err != nil && first:
		return nil, fmt.Errorf("certificate %s and key %s: %w", t.files.Certificate, t.files.Key, err)
	case err != nil:
		log.WithError(err).Error("the new server certificate can't be used, the old one stays")
		return t.pair, nil
	case !first:
		log.Info("server certificate read again")
	}
	t.pair = &pair
	return t.pair, nil
}

// Names are those that the server's certificate is good for, in lower case.
func (t *Trust) Names() []string {
	pair, err := t.certificate()
	if err != nil {
		return nil // it was never read, and nothing is served
	}
	var names []string
	for _, name := range append([]string{pair.Leaf.Subject.CommonName}, pair.Leaf.DNSNames...) {
		names = append(names, strings.ToLower(name))
	}
	return names
}

// Proof is a client's certificate that was accepted, and may not be for ever.
type Proof struct {
	trust *Trust
	leaf  *x509.Certificate

	mu sync.Mutex
	by *issuers
	at time.Time
}

// proofAge is how long a certificate is good without being verified anew,
// where neither CA nor CRL change: the CRL may expire meanwhile.
const proofAge = 10 * time.Second

// Prove returns the proof of a certificate that the handshake accepted.
func (t *Trust) Prove(leaf *x509.Certificate) *Proof { return &Proof{trust: t, leaf: leaf} }

// Check tells whether the certificate is accepted still, as Verify does, at
// little cost while nothing has changed.
func (p *Proof) Check() error {
	known, _ := p.trust.current()
	now := p.trust.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if known != nil && known == p.by && now.Sub(p.at) < proofAge && now.Before(p.leaf.NotAfter) {
		return nil
	}
	p.by = nil
	if err := p.trust.Verify(p.leaf); err != nil {
		return err
	}
	p.by, p.at = known, now
	return nil
}
