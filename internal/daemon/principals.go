package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// principals returns what must not be in a certificate that a provisioner gets.
func principals(c config.Config) registry.Principals {
	var p registry.Principals
	p.Certnames, p.AuthRoles = c.PrincipalNames()
	return p
}

// reviewGrants logs the principals and the live tokens whose grant has an extension that gives rights.
func (d *daemon) reviewGrants(ctx context.Context, c config.Config) error {
	grants := map[string]node.Grant{}
	for _, p := range c.Principals {
		name := "certname:" + p.Certname
		if p.AuthRole != "" {
			name = "auth_role:" + p.AuthRole
		}
		grants[name] = node.Grant{Extensions: p.Extensions}
	}
	tokens, err := d.store.AllTokens(ctx)
	if err != nil {
		return fmt.Errorf("read the tokens: %w", err)
	}
	for _, t := range tokens {
		if t.Live(time.Now()) {
			grants[t.Principal()] = t.Grant
		}
	}
	for principal, grant := range grants {
		warnings, err := d.registry.ReviewGrant(grant)
		if err != nil {
			warnings = append(warnings, err.Error())
		}
		for _, warning := range warnings {
			d.log.WithFields(logrus.Fields{"principal": principal, "warning": warning}).Warn("a grant gives more than it should")
		}
	}
	return nil
}
