package puppetserver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

const (
	crlAge   = 5 * time.Second // how long the CRL is cached
	chainAge = 5 * time.Minute // how long the chain is cached
	// staleAge is how old a CRL may be while the server does not answer. Agents fetch a new CRL
	// once a day.
	staleAge = 24 * time.Hour

	crlPath   = apiPath + "certificate_revocation_list/ca"
	chainPath = apiPath + "certificate/ca"
)

// trust is the server's chain and CRLs at some time.
type trust struct {
	ca.Trust
	chain   []*pemfile.RawCertificate
	issuer  *x509.Certificate    // the signing CA
	crls    func() (crls, error) // parses CRLsPEM, once
	chained time.Time            // when the chain was fetched
	asked   time.Time            // when the CRL was fetched
	since   time.Time            // answer.start of the CRL; zero: unknown
}

// crls are the parsed CRLs of the server.
type crls struct {
	own        *pemfile.RevocationList // the signing CA's
	foreign    []ca.CRLStatus
	foreignErr error // why one of them is no CRL; revocations don't need it
}

// Trust returns the chain and the CRLs. They are at most five seconds old, or a day
// while the server does not answer. Errors wrap node.ErrUnavailable.
func (a *server) Trust(ctx context.Context) (ca.Trust, error) {
	t, err := a.trusted(ctx, crlAge)
	if old := a.trust.Load(); err != nil && old != nil && a.opts.Now().Sub(old.asked) < staleAge {
		a.opts.Log.WithError(err).Warn("Puppet Server does not answer; espm returns the last known CRL")
		t, err = old, nil
	}
	if err != nil {
		return ca.Trust{}, fmt.Errorf("the CA's certificates and CRL: %w", err)
	}
	return t.Trust, nil
}

// trusted returns chain and CRLs no older than age.
func (a *server) trusted(ctx context.Context, age time.Duration) (*trust, error) {
	fresh := func(t *trust) bool {
		now := a.opts.Now()
		return t != nil && !now.Before(t.asked) && now.Sub(t.asked) < age && now.Sub(t.chained) < chainAge
	}
	if t := a.trust.Load(); fresh(t) {
		return t, nil
	}
	a.trusting.Lock()
	defer a.trusting.Unlock()
	old := a.trust.Load()
	if fresh(old) { // another call was faster
		return old, nil
	}
	next := &trust{}
	if old != nil {
		*next = *old
	}
	if err := a.fetchChain(ctx, next); err != nil {
		return nil, err
	}
	if err := a.fetchCRL(ctx, next); err != nil {
		return nil, err
	}
	a.trust.Store(next)
	return next, nil
}

func (a *server) fetchChain(ctx context.Context, t *trust) error {
	now := a.opts.Now()
	if t.chain != nil && now.Sub(t.chained) < chainAge {
		return nil
	}
	pemBytes, err := a.get(ctx, "certificate", "ca")
	if err != nil {
		return err
	}
	chain, err := pemfile.RawCertificates(pemBytes)
	if err == nil {
		err = chain[0].Unreadable // of those above it nothing is asked
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w: is this the CA server?", node.ErrUnavailable, chainPath, err)
	}
	if t.chain != nil && !t.issuer.Equal(chain[0].X509) {
		t.since = time.Time{} // another CA: fetch its CRL even if it is older
	}
	t.chain, t.issuer, t.chained, t.CertificatesPEM = chain, chain[0].X509, now, pemBytes
	return nil
}

// fetchCRL fetches the CRLs if they changed. The server sends no Last-Modified, but
// compares If-Modified-Since with the file's time. So fetchCRL sends a time of the server's clock
// that is just before the server read the last CRL.
func (a *server) fetchCRL(ctx context.Context, t *trust) error {
	c := call{method: http.MethodGet, path: crlPath}
	if !t.since.IsZero() {
		c.since = t.since.UTC().Format(http.TimeFormat)
	}
	now := a.opts.Now()
	got, err := a.do(ctx, c)
	if err != nil && got.code == 0 && ctx.Err() == nil {
		got, err = a.do(ctx, c)
	}
	if err != nil {
		return err
	}
	if got.code == http.StatusNotModified && !got.date.IsZero() && got.date.Before(t.since.Truncate(time.Second)) {
		// The server's clock was set back. It would take a newer CRL for an older one.
		t.since = time.Time{}
		return a.fetchCRL(ctx, t)
	}
	if got.code == http.StatusNotModified && c.since != "" {
		t.asked = now
		return nil
	}
	if err := got.check(c); err != nil {
		return fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	}
	if block, _ := pem.Decode(got.body); block == nil || block.Type != pemfile.CRL {
		return fmt.Errorf("%w: %s is no CRL", node.ErrUnavailable, crlPath)
	}
	chain, text := t.chain, got.body
	t.CRLsPEM, t.asked, t.since = text, now, got.start
	t.crls = sync.OnceValues(func() (crls, error) { return parseCRLs(text, chain) })
	return nil
}

// parseCRLs parses the CRLs and finds that of the signing CA. That CRL must be complete, as receipts
// depend on it.
func parseCRLs(text []byte, chain []*pemfile.RawCertificate) (crls, error) {
	var c crls
	for block := range pemfile.Blocks(text) {
		if c.own != nil && bytes.Equal(block.Bytes, c.own.Raw) {
			continue
		}
		crl, err := pemfile.ParseCRL(block)
		if err != nil {
			c.foreignErr = fmt.Errorf("%s: %w", crlPath, err)
			continue
		}
		if c.own == nil && crl.CheckSignatureFrom(chain[0].X509) == nil {
			c.own = crl
			continue
		}
		foreign := statusOf(crl)
		foreign.Outside = !slices.ContainsFunc(chain, func(c *pemfile.RawCertificate) bool { return bytes.Equal(c.RawSubject, crl.RawIssuer) })
		c.foreign = append(c.foreign, foreign)
	}
	if c.own == nil {
		return crls{}, errors.Join(fmt.Errorf("%s: none is signed by %s", crlPath, chain[0].Subject()), c.foreignErr)
	}
	if err := c.own.CheckWhole(); err != nil {
		return crls{}, fmt.Errorf("%s: %w", crlPath, err)
	}
	return c, nil
}
