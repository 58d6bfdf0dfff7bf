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

// clockSlack is kept from the end of the CA's life where a certificate is to
// last as long as it can: the server's clock may be behind.
const clockSlack = time.Minute

// CheckForm looks at the request and the CA's end, but not at the name, as Sign
// does that: see ca.FormChecker.
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

// Check looks at the request, the CA's end and what the server holds under the
// name. A certificate there that has expired or is revoked blocks it as well,
// with node.ErrForeignCertificate: one of espm's own is gone by the time that espm has the
// receipt, so it was revoked by another, or kept back by a request beside it.
// Whether the server's policy allows the request only Sign finds out.
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
	var hash string // of no key where there is none yet
	if r.CSR != nil || r.Key != nil {
		wanted, err := r.Wanted()
		if err != nil {
			return nil, err
		}
		hash = wanted.KeyHash
	}
	held, err := a.look(ctx, r.Certname, hash)
	if err != nil {
		return nil, err
	}
	cert := held.standing
	if cert == nil {
		return nil, held.strange
	}
	if a.opts.Now().After(cert.NotAfter) {
		return nil, fmt.Errorf("%w: serial %s, which has expired", node.ErrForeignCertificate, node.SerialOf(cert.SerialNumber))
	}
	return cert, a.unrevoked(ctx, cert)
}

// Sign submits a CSR, has it signed and fetches the certificate. Besides the
// errors of ca.Authority:
//   - node.ErrForeignCertificate, node.ErrForeignRequest: the name is taken at
//     the server by something that is not this request's, and stays as it is;
//   - node.ErrRefused: the server's policy forbids it, in its words; our CSR is
//     taken back;
//   - any other: the certificate that came back is not what was asked for.
//
// Nothing that changes the server is sent twice. Where the answer is lost, Sign
// looks whether there is a certificate of its key, and goes on with that.
func (a *signer) Sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	cert, err := a.sign(ctx, r)
	if err != nil {
		return cert, fmt.Errorf("sign %s: %w", r.Certname, err)
	}
	return cert, nil
}

func (a *signer) sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	if (r.Key == nil) == (r.CSR == nil) {
		return nil, errors.New("want a key or a CSR, one of them")
	}
	if err := errors.Join(ctx.Err(), ca.CheckRequest(r)); err != nil {
		return nil, err
	}
	wanted, err := r.Wanted()
	if err != nil {
		return nil, err
	}
	csr, err := makeCSR(r)
	if err != nil {
		return nil, err
	}
	ttl, err := a.ttl(ctx, r.TTL)
	if err != nil {
		return nil, err
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
			return nil, err // Find tells
		}
		return cert, err // signed at our order, as the CSR was exchanged: nobody else revokes it
	}
	return cert, nil
}

// unrevoked makes sure that a certificate of our key, which is there already,
// is one to go on with.
func (a *server) unrevoked(ctx context.Context, cert *x509.Certificate) error {
	serial := node.SerialOf(cert.SerialNumber)
	_, listed, err := a.listed(ctx, serial)
	if err == nil && listed[serial] {
		return fmt.Errorf("%w: serial %s of %q, which is revoked", node.ErrForeignCertificate, serial, cert.Subject.CommonName)
	}
	return err
}

// ttl returns the validity to ask for: the one that the caller asked for, or
// the default as far as the CA's life allows.
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

// holding is what the server holds under a name, seen from one request.
type holding struct {
	standing *x509.Certificate // of any key
	cert     *x509.Certificate // of our key
	csr      bool              // of our key
	strange  error             // what is not of our key
}

// look asks the server what it holds under a name.
func (a *signer) look(ctx context.Context, name node.Certname, keyHash string) (holding, error) {
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
	h := holding{standing: cert}
	if errors.Is(err, node.ErrForeignCertificate) { // it can't be read
		h.strange, err = err, nil
	}
	if err := errors.Join(err, csr.err); err != nil {
		return holding{}, err
	}
	if cert != nil {
		if hash, err := ca.KeyHash(cert.PublicKey); err == nil && hash == keyHash {
			h.cert = cert
		} else {
			h.strange = fmt.Errorf("%w: serial %s of %q", node.ErrForeignCertificate, node.SerialOf(cert.SerialNumber), name)
		}
	}
	if csr.pem != nil {
		if hash, err := csrKeyHash(csr.pem); err == nil && hash == keyHash {
			h.csr = true
		} else if h.strange == nil {
			h.strange = fmt.Errorf("%w: of %q", node.ErrForeignRequest, name)
		}
	}
	return h, nil
}

// certificate returns what stands in the server's signed/, nil if the name has none.
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

// submit has the server hold our CSR under a name that has nothing else. It
// returns a certificate of our key where there is one already: from an
// earlier call, or from a server that signs by itself (autosign).
//
// A server that is known to refuse a CSR under a taken name (see guard) is
// sent it at once, and only a refusal makes submit look why. Any other is
// looked at before, and told from its next answer.
func (a *signer) submit(ctx context.Context, w ca.Wanted, csr []byte) (*x509.Certificate, error) {
	c := call{
		method: http.MethodPut, path: apiPath + "certificate_request/" + url.PathEscape(string(w.Certname)),
		body: csr, kind: "text/plain", submits: true,
	}
	guarded := c
	guarded.guarded = true
	sent := a.change(ctx, w.Certname, w.KeyHash, guarded)
	if errors.Is(sent, errUnguarded) {
		held, err := a.look(ctx, w.Certname, w.KeyHash)
		if err != nil {
			return nil, err
		}
		if held.taken() {
			return a.goOn(ctx, held)
		}
		if sent = a.change(ctx, w.Certname, w.KeyHash, c); sent == nil {
			a.learn(ctx, csr)
		}
	}
	if sent == nil {
		return nil, nil
	}
	held, err := a.look(ctx, w.Certname, w.KeyHash)
	if err != nil {
		return nil, fmt.Errorf("%w; then %w", sent, err)
	}
	if lost(sent) && held.strange == nil && held.cert == nil {
		return nil, sent // a policy script may have the CSR signed any moment, beside us
	}
	if held.taken() {
		return a.goOn(ctx, held)
	}
	if status, ok := errors.AsType[*statusError](sent); ok && status.code < 500 {
		return nil, fmt.Errorf("%w: %s", node.ErrRefused, status.message)
	}
	if errors.Is(sent, errGone) {
		sent = fmt.Errorf("%w: %w: is this the CA server?", node.ErrUnavailable, sent)
	}
	return nil, sent
}

// taken says whether anything stands under the name.
func (h holding) taken() bool { return h.csr || h.cert != nil || h.strange != nil }

// goOn tells what to go on with under a name that is taken: a certificate, or
// none where our CSR stands. Why that one may have been refused although the server
// keeps it (it stores a CSR before it checks it) its signing tells.
func (a *signer) goOn(ctx context.Context, held holding) (*x509.Certificate, error) {
	if held.strange != nil {
		return nil, held.strange
	}
	if held.cert != nil {
		return held.cert, a.unrevoked(ctx, held.cert)
	}
	return nil, nil
}

// approve has the CSR signed and fetches the certificate.
func (a *signer) approve(ctx context.Context, w ca.Wanted, ttl time.Duration) (*x509.Certificate, error) {
	sent := a.change(ctx, w.Certname, w.KeyHash, setStatus(w.Certname, "signed", ttl))
	if sent == nil {
		cert, err := a.certificate(ctx, w.Certname)
		if err == nil && cert == nil {
			err = fmt.Errorf("%w: another took the certificate of %q away", node.ErrUnavailable, w.Certname)
		}
		return cert, err
	}
	held, err := a.look(ctx, w.Certname, w.KeyHash)
	if err != nil {
		return nil, sent
	}
	if held.cert != nil {
		return held.cert, nil
	}
	if held.strange != nil {
		return nil, held.strange
	}
	if status, ok := errors.AsType[*statusError](sent); ok && status.code == http.StatusConflict {
		return nil, a.refused(ctx, w, held, status)
	}
	if errors.Is(sent, errGone) {
		sent = fmt.Errorf("%w: another took the certificate request of %q away", node.ErrUnavailable, w.Certname)
	}
	return nil, sent
}

// refused takes our CSR back, that it does not block the next try, and says why.
func (a *signer) refused(ctx context.Context, w ca.Wanted, held holding, status *statusError) error {
	err := fmt.Errorf("%w: %s", node.ErrRefused, status.message)
	if held.csr {
		err = errors.Join(err, a.withdraw(ctx, w.Certname, w.KeyHash))
	}
	return err
}

// withdraw removes our own CSR. The call would remove a certificate too: the
// caller has seen that there is none, and none can be made of what the policy refuses.
func (a *signer) withdraw(ctx context.Context, name node.Certname, keyHash string) error {
	err := a.change(ctx, name, keyHash, call{method: http.MethodDelete, path: statusPath(name)})
	if err != nil && !errors.Is(err, errGone) {
		return fmt.Errorf("taking the certificate request of %q back: %w", name, err)
	}
	return nil
}

// makeCSR returns the request in the form in which the server signs it: it adds
// the certname to the alternative names, but nothing else that was asked for.
func makeCSR(r ca.Request) ([]byte, error) {
	if r.CSR != nil {
		return pemCSR(r.CSR.Raw), checkCSR(r)
	}
	subject, err := ca.CommonName(string(r.Certname))
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{RawSubject: subject}
	if len(r.DNSAltNames) > 0 { // else a server that allows no names would refuse it
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
