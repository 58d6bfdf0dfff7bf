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
	// Agents ask for a new CRL once a day; what a bundle has need not be newer
	// than that, but costs little to be.
	crlAge   = 5 * time.Second // a CRL that was asked for so recently is not asked for again
	chainAge = 5 * time.Minute
	staleAge = 24 * time.Hour // what may be handed out while the server does not answer

	crlPath   = apiPath + "certificate_revocation_list/ca"
	chainPath = apiPath + "certificate/ca"
)

// trust is the server's chain and CRLs as they were at some time.
type trust struct {
	ca.Trust
	chain   []*pemfile.RawCertificate
	issuer  *x509.Certificate    // the signing CA
	crls    func() (crls, error) // CRLsPEM, parsed when first wanted
	chained time.Time            // when the chain was asked for
	asked   time.Time            // when the CRL was asked for
	since   time.Time            // the server's time before that; zero: unknown
}

// crls is what the server hands out as its CRL.
type crls struct {
	own        *pemfile.RevocationList // the signing CA's
	foreign    []ca.CRLStatus
	foreignErr error // why one of them is no CRL; no revocation depends on it
}

// Trust returns the chain and the CRLs, at most five seconds old, or a day
// old while the server does not answer. It errs with node.ErrUnavailable.
func (a *server) Trust(ctx context.Context) (ca.Trust, error) {
	t, err := a.trusted(ctx, crlAge)
	if old := a.trust.Load(); err != nil && old != nil && a.opts.Now().Sub(old.asked) < staleAge {
		a.opts.Log.WithError(err).Warn("handing out the CRL as it was last seen")
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
		t.since = time.Time{} // another CA: its CRL is asked for anew
	}
	t.chain, t.issuer, t.chained, t.CertificatesPEM = chain, chain[0].X509, now, pemBytes
	return nil
}

// fetchCRL asks for the CRLs if they changed. The server has no Last-Modified; it
// compares If-Modified-Since with the file's time. So what is sent is its own
// time from just before it can have read the file that we have.
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
		// The server's clock was set back: a CRL written since then counts as older than ours.
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

// parseCRLs finds the CRL of the signing CA. That one has to list all that the CA
// revoked: receipts and the search for a revoked certificate depend on it.
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
