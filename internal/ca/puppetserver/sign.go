package puppetserver

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

// clockSlack is how long before the CA's end a certificate must end. The server's clock
// may be behind espm's.
const clockSlack = time.Minute

// CheckForm checks the request and the CA's end, but not the name, which Sign checks: see ca.FormChecker.
func (a *signer) CheckForm(ctx context.Context, r ca.Request) error {
	if err := a.checkForm(ctx, r); err != nil {
		return fmt.Errorf("check %s: %w", r.Certname, err)
	}
	return nil
}

func (a *signer) checkForm(ctx context.Context, r ca.Request) error {
	if err := errors.Join(ctx.Err(), ca.CheckRequest(r)); err != nil {
		return err
	}
	if r.CSR != nil {
		if err := checkCSR(r); err != nil {
			return err
		}
	}
	_, err := a.ttl(ctx, r.TTL)
	return err
}

// Check checks the request, the CA's end, and that the server has no other certificate or request
// of the name. An expired or revoked certificate is an error too, node.ErrForeignCertificate. When espm
// revokes, the server removes the certificate before the receipt. So another client revoked this one, or
// a request of the same name prevented the removal. Check can't ask whether the server's policy allows the
// request.
func (a *signer) Check(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	cert, err := a.precheck(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", r.Certname, err)
	}
	return cert, nil
}

func (a *signer) precheck(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	if err := a.checkForm(ctx, r); err != nil {
		return nil, err
	}
	var hash string // "" if the request has no key yet
	if r.CSR != nil || r.Key != nil {
		wanted, err := r.Wanted()
		if err != nil {
			return nil, err
		}
		hash = wanted.KeyHash
	}
	state, err := a.stateOf(ctx, r.Certname, hash)
	if err != nil {
		return nil, err
	}
	cert := state.current
	if cert == nil {
		return nil, state.foreign
	}
	if a.opts.Now().After(cert.NotAfter) {
		return nil, fmt.Errorf("%w: serial %s, which has expired", node.ErrForeignCertificate, node.SerialOf(cert.SerialNumber))
	}
	return cert, a.unrevoked(ctx, cert)
}

// Sign submits a CSR, has the server sign it, and fetches the certificate. It has these errors
// besides those of ca.Authority:
//   - node.ErrForeignCertificate, node.ErrForeignRequest: the server has a certificate or a request
//     of the name with another key. Sign does not change it.
//   - node.ErrRefused: the server's policy forbids the request. The error has the server's
//     message. Sign deletes its CSR.
//   - Any other error: the certificate differs from the request.
//
// Sign sends no call twice that changes something. If an answer is lost, Sign asks the server for a certificate
// of its key, and uses that.
func (a *signer) Sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	cert, err := a.sign(ctx, r)
	if err != nil {
		return cert, fmt.Errorf("sign %s: %w", r.Certname, err)
	}
	return cert, nil
}

func (a *signer) sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	wanted, csr, ttl, err := a.prepare(ctx, r)
	if err != nil {
		return nil, ca.NotIssued(err)
	}
	cert, err := a.submit(ctx, wanted, csr)
	if cert == nil && err == nil {
		cert, err = a.approve(ctx, wanted, ttl)
	}
	if err != nil {
		return nil, err
	}
	if err := a.accept(wanted, ttl, cert); err != nil {
		if hash, unknown := ca.KeyHash(cert.PublicKey); unknown == nil && hash == wanted.KeyHash {
			return nil, err // Find returns it
		}
		return cert, err // another client replaced our CSR: the caller must revoke the certificate
	}
	return cert, nil
}

// prepare does what Sign does before it sends anything that the server stores.
func (a *signer) prepare(ctx context.Context, r ca.Request) (w ca.Wanted, csr []byte, ttl time.Duration, err error) {
	if (r.Key == nil) == (r.CSR == nil) {
		return w, nil, 0, errors.New("want a key or a CSR, one of them")
	}
	if err := errors.Join(ctx.Err(), ca.CheckRequest(r)); err != nil {
		return w, nil, 0, err
	}
	if w, err = r.Wanted(); err != nil {
		return w, nil, 0, err
	}
	if csr, err = makeCSR(r); err != nil {
		return w, nil, 0, err
	}
	if ttl, err = a.ttl(ctx, r.TTL); err != nil {
		return w, nil, 0, err
	}
	// A CSR that espm may neither have signed nor delete would stay at the server.
	if !a.signs.Load() {
		_, err = a.ask(ctx, call{method: http.MethodGet, path: statusPath(r.Certname)})
		if _, answered := errors.AsType[*statusError](err); answered || errors.Is(err, errGone) {
			err = nil
		}
		a.signs.Store(err == nil)
	}
	return w, csr, ttl, err
}

// unrevoked returns an error if an existing certificate of our key is revoked.
func (a *server) unrevoked(ctx context.Context, cert *x509.Certificate) error {
	serial := node.SerialOf(cert.SerialNumber)
	_, listed, err := a.listed(ctx, serial)
	if err == nil && listed[serial] {
		return fmt.Errorf("%w: serial %s of %q, which is revoked", node.ErrForeignCertificate, serial, cert.Subject.CommonName)
	}
	return err
}

// ttl returns the caller's TTL, or else the default, limited by the CA's end.
func (a *signer) ttl(ctx context.Context, ttl time.Duration) (time.Duration, error) {
	t, err := a.trusted(ctx, chainAge)
	if err != nil {
		return 0, err
	}
	now := a.opts.Now()
	if ttl == 0 {
		left := t.issuer.NotAfter.Sub(now) - clockSlack
		ttl = min(a.opts.TTL, max(left.Truncate(time.Second), ca.MinTTL))
	}
	_, _, err = ca.Validity(ttl, now, t.issuer)
	return ttl, err
}

// nameState is what the server has of a name. "Ours" means: of the key that was asked for.
type nameState struct {
	current *x509.Certificate // of any key
	cert    *x509.Certificate // ours
	csr     bool              // there is a CSR of ours
	foreign error             // names a certificate or a CSR that is not ours
}

// stateOf asks the server for the certificate and the CSR of a name.
func (a *signer) stateOf(ctx context.Context, name node.Certname, keyHash string) (nameState, error) {
	type reply struct {
		pem []byte
		err error
	}
	requested := make(chan reply, 1)
	go func() {
		b, err := a.get(ctx, "certificate_request", name)
		requested <- reply{b, err}
	}()
	cert, err := a.certificate(ctx, name)
	csr := <-requested
	h := nameState{current: cert}
	if errors.Is(err, node.ErrForeignCertificate) { // crypto/x509 can't read it
		h.foreign, err = err, nil
	}
	if err := errors.Join(err, csr.err); err != nil {
		return nameState{}, err
	}
	if cert != nil {
		if hash, err := ca.KeyHash(cert.PublicKey); err == nil && hash == keyHash {
			h.cert = cert
		} else {
			h.foreign = fmt.Errorf("%w: serial %s of %q", node.ErrForeignCertificate, node.SerialOf(cert.SerialNumber), name)
		}
	}
	if csr.pem != nil {
		if hash, err := csrKeyHash(csr.pem); err == nil && hash == keyHash {
			h.csr = true
		} else if h.foreign == nil {
			h.foreign = fmt.Errorf("%w: of %q", node.ErrForeignRequest, name)
		}
	}
	return h, nil
}

// certificate returns the server's signed/NAME.pem, nil if there is none.
func (a *server) certificate(ctx context.Context, name node.Certname) (*x509.Certificate, error) {
	pemBytes, err := a.get(ctx, "certificate", name)
	if err != nil || pemBytes == nil {
		return nil, err
	}
	cert, err := pemfile.First(pemBytes)
	if err != nil {
		return nil, fmt.Errorf("%w: of %q, which can't be read: %w", node.ErrForeignCertificate, name, err)
	}
	return cert, nil
}

func csrKeyHash(pemBytes []byte) (string, error) {
	block, _ := pem.Decode(pemBytes)
	if block == nil {
		return "", errors.New("no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return "", err
	}
	return ca.KeyHash(csr.PublicKey)
}

// submit submits our CSR. It returns a certificate of our key if there is one
// already: from an earlier call, or from a server that autosigns.
//
// submit checks the name first, as a server with allow-duplicate-certs in ca.conf replaces the CSR
// or the certificate of a name.
func (a *signer) submit(ctx context.Context, w ca.Wanted, csr []byte) (*x509.Certificate, error) {
	state, err := a.stateOf(ctx, w.Certname, w.KeyHash)
	if err != nil {
		return nil, ca.NotIssued(err)
	}
	if state.taken() {
		return a.resume(ctx, state)
	}
	sent := a.change(ctx, w.Certname, w.KeyHash, call{
		method: http.MethodPut, path: apiPath + "certificate_request/" + url.PathEscape(string(w.Certname)), body: csr, kind: "text/plain",
	})
	if sent == nil {
		return nil, nil
	}
	if notTaken(sent) {
		return nil, ca.NotIssued(sent)
	}
	state, err = a.stateOf(ctx, w.Certname, w.KeyHash)
	if err != nil {
		return nil, fmt.Errorf("%w; then %w", sent, err)
	}
	if lost(sent) && state.foreign == nil && state.cert == nil {
		return nil, sent // the server may still autosign the CSR
	}
	if state.taken() {
		return a.resume(ctx, state)
	}
	if status, ok := errors.AsType[*statusError](sent); ok && status.code < 500 {
		return nil, fmt.Errorf("%w: %s", node.ErrRefused, status.message)
	}
	if errors.Is(sent, errGone) {
		sent = fmt.Errorf("%w: %w: is this the CA server?", node.ErrUnavailable, sent)
	}
	return nil, sent
}

// taken reports whether the server has a certificate or a CSR of the name.
func (h nameState) taken() bool { return h.csr || h.cert != nil || h.foreign != nil }

// resume continues with a name that is taken. It returns a certificate of ours, or nil if there is a CSR of
// ours. The server stores a CSR before it checks it. So it may have refused this one; then the signing
// returns the reason.
func (a *signer) resume(ctx context.Context, state nameState) (*x509.Certificate, error) {
	if state.foreign != nil {
		return nil, state.foreign
	}
	if state.cert != nil {
		return state.cert, a.unrevoked(ctx, state.cert)
	}
	return nil, nil
}

// approve has the server sign the CSR, and fetches the certificate.
func (a *signer) approve(ctx context.Context, w ca.Wanted, ttl time.Duration) (*x509.Certificate, error) {
	sent := a.change(ctx, w.Certname, w.KeyHash, setStatus(w.Certname, "signed", ttl))
	if sent == nil {
		cert, err := a.certificate(ctx, w.Certname)
		if err == nil && cert == nil {
			err = fmt.Errorf("%w: another client removed the certificate of %q", node.ErrUnavailable, w.Certname)
		}
		return cert, err
	}
	state, err := a.stateOf(ctx, w.Certname, w.KeyHash)
	if err != nil {
		return nil, sent
	}
	if state.cert != nil {
		return state.cert, nil
	}
	if state.foreign != nil {
		return nil, state.foreign
	}
	if status, ok := errors.AsType[*statusError](sent); ok && status.code == http.StatusConflict {
		return nil, a.giveUp(ctx, w, state, fmt.Errorf("%w: %s", node.ErrRefused, status.message))
	}
	if notTaken(sent) {
		a.signs.Store(false)
		return nil, a.giveUp(ctx, w, state, sent)
	}
	if errors.Is(sent, errGone) {
		sent = fmt.Errorf("%w: another client removed the certificate request of %q", node.ErrUnavailable, w.Certname)
	}
	return nil, sent
}

// giveUp deletes our CSR after a signing that the server refused or did not get, so that the CSR does not block the next
// try. It returns the reason.
func (a *signer) giveUp(ctx context.Context, w ca.Wanted, state nameState, why error) error {
	if !state.csr {
		return why
	}
	if err := a.withdraw(ctx, w.Certname, w.KeyHash); err != nil {
		return errors.Join(why, err)
	}
	return ca.NotIssued(why)
}

// withdraw deletes our own CSR. The call would delete a certificate of the name too. There is none:
// the caller has checked that, and the server does not sign a CSR that its policy refuses, or that it was not told to sign.
func (a *signer) withdraw(ctx context.Context, name node.Certname, keyHash string) error {
	err := a.change(ctx, name, keyHash, call{method: http.MethodDelete, path: statusPath(name)})
	if err != nil && !errors.Is(err, errGone) {
		return fmt.Errorf("delete the certificate request of %q: %w", name, err)
	}
	return nil
}

// makeCSR returns the CSR in PEM. It has all extensions and alternative names, as the server adds only
// the certname.
func makeCSR(r ca.Request) ([]byte, error) {
	if r.CSR != nil {
		return pemCSR(r.CSR.Raw), checkCSR(r)
	}
	subject, err := ca.CommonName(string(r.Certname))
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{RawSubject: subject}
	if len(r.DNSAltNames) > 0 { // a server that allows no alternative names refuses even the certname
		template.DNSNames = append([]string{string(r.Certname)}, r.DNSAltNames...)
	}
	for _, e := range r.Extensions {
		value, err := asn1.MarshalWithParams(e.Value, "utf8")
		if err != nil {
			return nil, fmt.Errorf("encode extension %s: %w", e.ID, err)
		}
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: e.ID, Value: value})
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, r.Key)
	if err != nil {
		return nil, fmt.Errorf("create certificate request: %w", err)
	}
	return pemCSR(der), nil
}

func pemCSR(der []byte) []byte {
	return pemfile.Encode(pemfile.Request, der)
}
