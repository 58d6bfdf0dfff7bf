package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/secret"
)

// mayBegin returns the error that would refuse a provision.
func (i *issuer) mayBegin(ctx context.Context, n node.Node, o order) error {
	if err := i.registrations.addNode(ctx, &n, nil, nil, true); err != nil {
		return err
	}
	return i.vet(ctx, o)
}

// vetIssue is vet before an issue. It leaves out the checks that the authority repeats when it signs.
func (i *issuer) vetIssue(ctx context.Context, o order) error {
	if authority, ok := i.authority.(ca.FormChecker); ok {
		return authority.CheckForm(ctx, o.request)
	}
	return i.vet(ctx, o)
}

// vet asks the authority whether it would refuse the request. It also refuses a name whose certificate at the
// authority was not issued by espm: a new certificate would hide it.
func (i *issuer) vet(ctx context.Context, o order) error {
	if err := i.clock(); err != nil {
		return fmt.Errorf("issue a certificate for %q: %w", o.request.Certname, err)
	}
	current, err := i.authority.Check(ctx, o.request)
	if err != nil || current == nil {
		return err
	}
	serial := node.SerialOf(current.SerialNumber)
	if _, err := i.store.Certificate(ctx, serial); !errors.Is(err, node.ErrCertificateNotFound) {
		return err
	}
	for intent, err := range i.store.Intents(ctx) {
		if err != nil || intent.Certname == o.request.Certname {
			return err // the certificate may be of an unfinished issue, which is not settled yet
		}
	}
	return fmt.Errorf("%w: serial %s of %q, valid until %s", node.ErrForeignCertificate, serial, o.request.Certname, current.NotAfter.Format(time.RFC3339))
}

// verify checks a certificate against the intent.
func verify(cert *x509.Certificate, intent node.IssueIntent) error {
	return ca.Wanted{
		Certname:    intent.Certname,
		KeyHash:     intent.KeyHash,
		DNSAltNames: intent.DNSAltNames,
		Extensions:  intent.Extensions,
		TTL:         intent.TTL,
	}.Check(cert)
}

func record(intent node.IssueIntent, owner string, cert *x509.Certificate) node.Certificate {
	return node.Certificate{
		Serial:    node.SerialOf(cert.SerialNumber),
		Certname:  intent.Certname,
		UID:       intent.UID,
		Owner:     owner,
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		PEM:       string(encodeCertificate(cert)),
		RequestID: intent.RequestID,
	}
}

func encodeCertificate(cert *x509.Certificate) []byte {
	return pemfile.Encode(pemfile.Certificate, cert.Raw)
}

func (i *issuer) bundle(ctx context.Context, n node.Node, certificate []byte, key secret.Text) (bootstrap.Bundle, error) {
	trust, err := i.authority.Trust(ctx)
	if err != nil {
		return bootstrap.Bundle{}, fmt.Errorf("the CA's certificates and CRL: %w", err)
	}
	classification, err := enc.Merge(ctx, i.store, n)
	if err != nil {
		return bootstrap.Bundle{}, fmt.Errorf("the environment of %q: %w", n.Certname, err)
	}
	return bootstrap.Bundle{
		CertificatePEM: certificate,
		PrivateKeyPEM:  key,
		CAPEM:          trust.CertificatesPEM,
		CRLPEM:         trust.CRLsPEM,
		PuppetConf:     i.puppet.PuppetConf(n.Certname, classification.Environment),
		MasterURL:      i.puppet.URL(),
	}, nil
}
