package puppetserver

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

const (
	// statusesPath is slow: the server parses all its certificates and requests.
	statusesPath = apiPath + "certificate_statuses/any"
	listLimit    = 15 * time.Minute
)

// SignedNames returns the names of all certificates in the server's
// signed/, in order. Some may be revoked.
func (a *listing) SignedNames(ctx context.Context) ([]string, error) {
	names, err := a.signedNames(ctx)
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	return names, nil
}

func (a *listing) signedNames(ctx context.Context) ([]string, error) {
	body, err := a.ask(ctx, call{method: http.MethodGet, path: statusesPath, limit: listLimit})
	if status, ok := errors.AsType[*statusError](err); ok && status.code == http.StatusInternalServerError {
		return nil, fmt.Errorf("%w (one file in its signed/ that is no certificate is enough for that: the server's log names it. Move it away, or name the certnames to import)", err)
	}
	if err != nil {
		return nil, err
	}
	var statuses []struct {
		Name  string `json:"name"`
		State string `json:"state"`
	}
	if err := json.Unmarshal(body, &statuses); err != nil {
		return nil, fmt.Errorf("%w: %s answers %q, which is no list of certificates: set authority.puppetserver.url to the CA server", node.ErrUnavailable, statusesPath, firstLine(body))
	}
	var names []string
	for _, s := range statuses {
		if s.State != "requested" {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Existing returns the certificate of each name, in order, and whether the server's
// current CRL lists it. It uses at most half of Options.Concurrency, so that signing
// continues meanwhile.
func (a *listing) Existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error) {
	existing, err := a.existing(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("fetch %d certificates: %w", len(names), err)
	}
	return existing, nil
}

func (a *listing) existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error) {
	for _, name := range names {
		if _, err := node.ParseCertname(string(name)); err != nil {
			return nil, err // the name becomes a path
		}
	}
	t, err := a.trusted(ctx, chainAge)
	if err != nil {
		return nil, err
	}
	out := make([]ca.Existing, len(names))
	group, asking := errgroup.WithContext(ctx)
	group.SetLimit(max(1, a.opts.Concurrency/2))
	for i, name := range names {
		group.Go(func() (err error) {
			out[i], err = a.existingUnder(asking, name, t.issuer)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	// The CRL comes last, so that it has revocations during the calls above.
	var serials []node.Serial
	for _, h := range out {
		if h.Certificate != nil {
			serials = append(serials, node.SerialOf(h.Certificate.SerialNumber))
		}
	}
	_, listed, err := a.listed(ctx, serials...)
	if err != nil {
		return nil, err
	}
	for i, h := range out {
		if h.Problem == nil && h.Certificate != nil && listed[node.SerialOf(h.Certificate.SerialNumber)] {
			out[i].Problem = ca.ErrExistingRevoked
		}
	}
	return out, nil
}

func (a *listing) existingUnder(ctx context.Context, name node.Certname, issuer *x509.Certificate) (ca.Existing, error) {
	cert, err := a.certificate(ctx, name)
	status, refused := errors.AsType[*statusError](err)
	switch {
	case errors.Is(err, node.ErrForeignCertificate):
		return ca.Existing{Problem: fmt.Errorf("it can't be read: %w", err)}, nil
	// Puppet Server answers 500 for a file that it can't read.
	case refused && (status.code == http.StatusInternalServerError || !errors.Is(err, node.ErrUnavailable)):
		return ca.Existing{Problem: fmt.Errorf("the server does not return it: %w", status)}, nil
	case err != nil || cert == nil:
		return ca.Existing{}, err
	}
	h := ca.Existing{Certificate: cert, Problem: ca.CheckExisting(cert, name, issuer, a.opts.Now())}
	if h.Problem == nil && a.credentials.isClientCert(cert) {
		h.Problem = errors.New("it is espm's own client certificate at Puppet Server, so it must not be terminated")
	}
	return h, nil
}

// isClientCert reports whether a certificate is the client certificate. On Puppet
// Server's own host, that may be the server's certificate too.
func (c *credentials) isClientCert(cert *x509.Certificate) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaf.Equal(cert)
}
