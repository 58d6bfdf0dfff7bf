package puppetserver

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// accept checks the server's certificate against the request. A
// server that autosigns the name signs the CSR at once, with its own TTL.
// accept allows that if the caller asked for no TTL.
func (a *signer) accept(w ca.Wanted, ttl time.Duration, cert *x509.Certificate) error {
	err := w.Check(cert)
	lasting := w
	lasting.TTL = 0
	if err != nil && lasting.Check(cert) == nil {
		return fmt.Errorf("%w: %w: Puppet Server autosigned it with the ca_ttl of its puppet.conf: "+
			"don't autosign this name, or ask for no ttl", node.ErrRefused, err)
	}
	lasting.TTL = ttl // the configured certificates.ttl, if any
	if err == nil && a.opts.TTL != ca.DefaultTTL && lasting.Check(cert) != nil {
		a.opts.Log.WithFields(logrus.Fields{"certname": w.Certname, "not_after": cert.NotAfter.UTC(), "wanted": ttl}).
			Warn("Puppet Server autosigns this name, so the certificate has the server's ttl")
	}
	return err
}
