package puppetserver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// lostTTL is the validity of a certificate that is signed to be revoked. It is
// too short for Wanted.Check, so that nobody adopts it.
const lostTTL = 30 * time.Second

// Find looks for a certificate of the query's key under its name. Its answer is
// final: a CSR of ours that is left, which a Sign under way or an operator could still
// have signed, is signed here and reported as issued, to be revoked. To
// delete it would not do: 7.9 reads the CSR, signs, and writes the
// certificate, and a certificate written after the delete would be
// nobody's. Signing takes the server's lock, so it comes after a Sign under way.
func (a *Authority) Find(ctx context.Context, q ca.Query) (ca.Found, error) {
	found, err := a.find(ctx, q)
	if err != nil {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, err)
	}
	return found, nil
}

func (a *Authority) find(ctx context.Context, q ca.Query) (ca.Found, error) {
	if err := ctx.Err(); err != nil {
		return ca.Found{}, err
	}
	held, err := a.look(ctx, q.Certname, q.KeyHash)
	if err != nil {
		return ca.Found{}, err
	}
	if held.cert != nil {
		return issued(held.cert), nil
	}
	if !held.csr {
		// The server removes a CSR after it wrote the certificate: it may
		// have done so between our two questions.
		held, err = a.look(ctx, q.Certname, q.KeyHash)
		if err != nil || held.cert == nil {
			return ca.Found{}, err
		}
		return issued(held.cert), nil
	}
	_, sent := a.ask(ctx, setStatus(q.Certname, "signed", lostTTL))
	status, refused := errors.AsType[*statusError](sent)
	refused = refused && status.code == http.StatusConflict
	if sent != nil && !refused && !errors.Is(sent, errGone) {
		return ca.Found{}, sent
	}
	held, err = a.look(ctx, q.Certname, q.KeyHash)
	switch {
	case err != nil:
		return ca.Found{}, err
	case held.cert != nil && sent == nil:
		return ca.Found{Issued: true, Serial: node.SerialOf(held.cert.SerialNumber)}, nil
	case held.cert != nil:
		return issued(held.cert), nil
	case held.csr && refused:
		return ca.Found{}, a.withdraw(ctx, q.Certname)
	case held.csr || sent == nil:
		return ca.Found{}, fmt.Errorf("%w: the request of %q changes just now", node.ErrUnavailable, q.Certname)
	}
	return ca.Found{}, nil
}

func issued(cert *x509.Certificate) ca.Found {
	return ca.Found{Issued: true, Serial: node.SerialOf(cert.SerialNumber), Certificate: cert}
}

// checkCSR makes sure that a caller's CSR itself asks for all that the call
// asks for: only its key could add what is missing.
func checkCSR(r ca.Request) error {
	var errs []error
	for _, name := range r.DNSAltNames {
		if !slices.Contains(r.CSR.DNSNames, name) {
			errs = append(errs, node.Invalid("csr_pem", "does not ask for the name %q; Puppet Server gives no more than the CSR asks for", name))
		}
	}
	for _, e := range r.Extensions {
		asked := false
		for _, have := range r.CSR.Extensions {
			asked = asked || have.Id.Equal(e.ID)
		}
		if !asked {
			errs = append(errs, node.Invalid("csr_pem", "does not ask for the extension %s; Puppet Server gives no more than the CSR asks for",
				ca.ExtensionName(e.ID)))
		}
	}
	return node.Join(errs...)
}
