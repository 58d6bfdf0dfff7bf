package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
)

// Network configures the API's TLS listener. Files that are "" are those of
// this host's Puppet. If espm owns a CA directory, CA and CRL are those of the
// directory.
type Network struct {
	Listen      string `yaml:"listen"`
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
	CRL         string `yaml:"crl"`

	MaxConnections           int `yaml:"max_connections"`
	MaxConnectionsPerAddress int `yaml:"max_connections_per_address"`
}

// Principal admits callers with a certificate. One of Certname and AuthRole is set.
type Principal struct {
	Certname string `yaml:"certname"`
	AuthRole string `yaml:"auth_role"`
	Role     string `yaml:"role"`

	// The lists restrict a provisioner. A list that is not set allows all.
	Names        []string `yaml:"names"`
	Environments []string `yaml:"environments"`
	Groups       []string `yaml:"groups"`
	Extensions   []string `yaml:"extensions"`
	MaxTTL       Duration `yaml:"max_ttl"`

	RequestsPerSecond float64 `yaml:"requests_per_second"`
	OpenProvisions    int     `yaml:"open_provisions"`
}

// The limits of network.max_connections.
const (
	defaultConnections = 4096
	defaultPerAddress  = 512
	mostConnections    = 100_000
)

func (n *Network) fill(dir string) {
	n.Listen = cmp.Or(n.Listen, ":8443")
	n.MaxConnections = cmp.Or(n.MaxConnections, defaultConnections)
	n.MaxConnectionsPerAddress = cmp.Or(n.MaxConnectionsPerAddress, min(defaultPerAddress, n.MaxConnections))
	for _, file := range []*string{&n.Certificate, &n.Key, &n.CA, &n.CRL} {
		if *file != "" {
			absolute(dir, file)
		}
	}
}

func (n *Network) check() error {
	_, port, err := net.SplitHostPort(n.Listen)
	if number, convErr := strconv.Atoi(port); err != nil || convErr != nil || number < 0 || number > 65535 {
		return fmt.Errorf("network.listen: %q: must be HOST:PORT or :PORT, such as :8443", n.Listen)
	}
	if (n.Certificate == "") != (n.Key == "") {
		return errors.New("network: certificate and key belong together")
	}
	if (n.CA == "") != (n.CRL == "") {
		return errors.New("network: ca and crl belong together")
	}
	if n.MaxConnections < 1 || n.MaxConnections > mostConnections {
		return fmt.Errorf("network.max_connections: from 1 to %d, is %d", mostConnections, n.MaxConnections)
	}
	if n.MaxConnectionsPerAddress < 1 || n.MaxConnectionsPerAddress > n.MaxConnections {
		return fmt.Errorf("network.max_connections_per_address: from 1 to max_connections (%d), is %d", n.MaxConnections, n.MaxConnectionsPerAddress)
	}
	return nil
}

func (c *Config) checkAccess() error {
	if c.Network != nil {
		if err := c.Network.check(); err != nil {
			return err
		}
	}
	_, err := c.Access()
	return err
}

// Access returns the principals of the configuration.
func (c *Config) Access() (auth.Principals, error) {
	var list []auth.Principal
	for i, p := range c.Principals {
		at := fmt.Sprintf("principals[%d].", i)
		role, err := node.ParseRole(at+"role", p.Role)
		if err != nil {
			return auth.Principals{}, err
		}
		if p.Certname != "" {
			if _, err := node.ParseCertname(p.Certname); err != nil {
				return auth.Principals{}, fmt.Errorf("%s%w", at, err)
			}
		}
		grant := node.Grant{
			Names: p.Names, Environments: p.Environments, Groups: p.Groups, Extensions: p.Extensions, MaxTTL: time.Duration(p.MaxTTL),
			RequestsPerSecond: p.RequestsPerSecond, OpenProvisions: p.OpenProvisions,
		}
		if err := grant.Check(at, role); err != nil {
			return auth.Principals{}, err
		}
		list = append(list, auth.Principal{Certname: node.Certname(p.Certname), AuthRole: p.AuthRole, Role: role, Grant: grant})
	}
	return auth.NewPrincipals(list)
}

// PrincipalNames returns the certnames and the authorization roles by which principals are known.
func (c *Config) PrincipalNames() (certnames, authRoles []string) {
	for _, p := range c.Principals {
		if p.Certname != "" {
			certnames = append(certnames, p.Certname)
		} else {
			authRoles = append(authRoles, p.AuthRole)
		}
	}
	return certnames, authRoles
}
