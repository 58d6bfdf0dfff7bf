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

// Find asks the server for a certificate of the query's name and key. The answer is
// final. While the server may still work on a call whose answer was lost, Find returns a
// *node.BusyError. After that, a CSR of ours may be left, which an operator could
// sign. Find has the server sign this CSR and reports it as issued, so that the caller revokes it. Find
// must not delete the CSR: the server may be signing it, and would write the
// certificate after the delete. Then nobody would revoke that certificate.
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
	state, err := a.stateOf(ctx, q.Certname, q.KeyHash)
	if err != nil {
		return ca.Found{}, err
	}
	if state.cert != nil {
		return issued(state.cert), nil // final, as a Sign has at most one certificate signed
	}
	if err := a.tooEarly(q); err != nil {
		return ca.Found{}, err
	}
	if !state.csr {
		// The server writes the certificate, then removes the CSR. It may
		// have done both between the two calls of stateOf.
		state, err = a.stateOf(ctx, q.Certname, q.KeyHash)
		switch {
		case err != nil:
			return ca.Found{}, err
		case state.cert != nil:
			return issued(state.cert), nil
		case !state.csr:
			return ca.Found{}, a.isCA(ctx)
		}
	}
	sent := a.change(ctx, q.Certname, q.KeyHash, setStatus(q.Certname, "signed", lostTTL))
	status, refused := errors.AsType[*statusError](sent)
	refused = refused && status.code == http.StatusConflict || notTaken(sent)
	if sent != nil && !refused && !errors.Is(sent, errGone) {
		return ca.Found{}, sent
	}
	state, err = a.stateOf(ctx, q.Certname, q.KeyHash)
	switch {
	case err != nil:
		return ca.Found{}, err
	case state.cert != nil && sent == nil:
		return ca.Found{Issued: true, Serial: node.SerialOf(state.cert.SerialNumber)}, nil
	case state.cert != nil:
		return issued(state.cert), nil
	case state.csr && refused:
		return ca.Found{}, a.withdraw(ctx, q.Certname, q.KeyHash)
	case state.csr || sent == nil:
		return ca.Found{}, fmt.Errorf("%w: the server is changing the request of %q now", node.ErrUnavailable, q.Certname)
	}
	return ca.Found{}, a.isCA(ctx)
}

// isCA returns an error if the server has no CA certificate. Another program at this address could answer
// 404 to everything, and a missing certificate would mean nothing.
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

// checkCSR checks that a caller's CSR has all names and extensions that the call
// asks for. espm can't add them, as it does not have the key.
func checkCSR(r ca.Request) error {
	var errs []error
	for _, name := range r.DNSAltNames {
		if !slices.Contains(r.CSR.DNSNames, name) {
			errs = append(errs, node.Invalid("csr_pem", "does not ask for the name %q; Puppet Server issues only what the CSR asks for", name))
		}
	}
	for _, e := range r.Extensions {
		asked := false
		for _, have := range r.CSR.Extensions {
			asked = asked || have.Id.Equal(e.ID)
		}
		if !asked {
			errs = append(errs, node.Invalid("csr_pem", "does not ask for the extension %s; Puppet Server issues only what the CSR asks for",
				ca.ExtensionName(e.ID)))
		}
	}
	return node.Join(errs...)
}
