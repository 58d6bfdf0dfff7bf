package puppetserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"syscall"

	"github.com/espm-project/espm/internal/node"
)

// explain adds a hint to the error of a call that has no answer.
func (a *server) explain(err error) error {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		noTLS     tls.RecordHeaderError
		alert     tls.AlertError
	)
	hint := ""
	switch {
	case errors.As(err, &authority):
		hint = fmt.Sprintf("%s does not have the CA of the server's certificate: check authority.puppetserver.url and authority.puppetserver.ca", a.opts.CA)
	case errors.As(err, &name):
		hint = "authority.puppetserver.url must have one of the names in the server's certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		hint = "check the server's certificate and this host's clock"
	case errors.As(err, &noTLS):
		hint = "the program at this port does not use TLS: is it Puppet Server's port?"
	case errors.As(err, &alert):
		hint = fmt.Sprintf("the server refuses the client certificate %s: is it revoked, expired, or of another CA?", a.opts.Certificate)
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "does Puppet Server run, and is this its port?"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

// unreachable is the error of a call that has no answer.
func unreachable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return fmt.Errorf("%w: %w", node.ErrUnavailable, err)
}

// notPresented reports whether the client certificate was not sent to the server. TLS sends
// it only if the server accepts the CA that issued it.
func (a *server) notPresented() bool {
	t := a.trust.Load()
	if t == nil {
		return false
	}
	pool := x509.NewCertPool()
	for _, cert := range t.chain {
		if cert.X509 != nil {
			pool.AddCert(cert.X509)
		}
	}
	_, err := a.credentials.certificate().Verify(x509.VerifyOptions{
		Roots: pool, CurrentTime: a.opts.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	authority := x509.UnknownAuthorityError{}
	return errors.As(err, &authority)
}
