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
// final: where the server may still be at a call whose answer was lost, it is a
// *node.BusyError. A CSR of ours that is left after that, which an operator could
// still have signed, is signed here and reported as issued, to be revoked. To
// delete it would not do: the server reads the CSR, signs, and writes the
// certificate, and a certificate written after the delete would be nobody's.
func (a *signer) Find(ctx context.Context, q ca.Query) (ca.Found, error) {
	found, err := a.find(ctx, q)
	if err != nil {
		return ca.Found{}, fmt.Errorf("find certificate of %s: %w", q.Certname, err)
	}
	return found, nil
}

func (a *signer) find(ctx context.Context, q ca.Query) (ca.Found, error) {
	if err := ctx.Err(); err != nil {
		return ca.Found{}, err
	}
	held, err := a.look(ctx, q.Certname, q.KeyHash)
	if err != nil {
		return ca.Found{}, err
	}
	if held.cert != nil {
		return issued(held.cert), nil // a Sign has one signed, and once
	}
	if err := a.tooEarly(q); err != nil {
		return ca.Found{}, err
	}
	if !held.csr {
		// The server removes a CSR after it wrote the certificate: it may
		// have done so between our two questions.
		held, err = a.look(ctx, q.Certname, q.KeyHash)
		switch {
		case err != nil:
			return ca.Found{}, err
		case held.cert != nil:
			return issued(held.cert), nil
		case !held.csr:
			return ca.Found{}, a.isCA(ctx)
		}
	}
	sent := a.change(ctx, q.Certname, q.KeyHash, setStatus(q.Certname, "signed", lostTTL))
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
		return ca.Found{}, a.withdraw(ctx, q.Certname, q.KeyHash)
	case held.csr || sent == nil:
		return ca.Found{}, fmt.Errorf("%w: the request of %q changes just now", node.ErrUnavailable, q.Certname)
	}
	return ca.Found{}, a.isCA(ctx)
}

// isCA makes sure that it is the CA that has nothing, not something in its
// place that says 404 to everything.
func (a *server) isCA(ctx context.Context) error {
	chain, err := a.get(ctx, "certificate", "ca")
	if err == nil && chain == nil {
		err = fmt.Errorf("%w: %s is not found: is this the CA server?", node.ErrUnavailable, chainPath)
	}
	return err
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
