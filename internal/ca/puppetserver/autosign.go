package puppetserver

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// accept checks the certificate that came back, for which ttl was asked. A
// server that autosigns the name signs when it gets the CSR, with a life of its
// own choice, before it can be asked for one: where the caller did not ask
// for one either, that will do.
func (a *signer) accept(w ca.Wanted, ttl time.Duration, cert *x509.Certificate) error {
	err := w.Check(cert)
	lasting := w
	lasting.TTL = 0
	if err != nil && lasting.Check(cert) == nil {
		return fmt.Errorf("%w: %w: Puppet Server signed it by itself, as autosign in its puppet.conf says, for the ca_ttl there: "+
			"don't have it autosign this name, or ask for no ttl", node.ErrRefused, err)
	}
	lasting.TTL = ttl // certificates.ttl, if that is set
	if err == nil && a.opts.TTL != ca.DefaultTTL && lasting.Check(cert) != nil {
		a.opts.Log.WithFields(logrus.Fields{"certname": w.Certname, "not_after": cert.NotAfter.UTC(), "wanted": ttl}).
			Warn("Puppet Server signed by itself, for a time of its own: it autosigns this name")
	}
	return err
}
