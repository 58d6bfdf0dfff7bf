// Package bootstrap makes what an instance needs to run its agent trusted
// from the first boot.
package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/secret"
)

// Bundle is all that an agent needs.
type Bundle struct {
	CertificatePEM []byte
	PrivateKeyPEM  secret.Text // none where the caller holds the key
	CAPEM          []byte      // the signing CA first
	CRLPEM         []byte
	PuppetConf     string
}

// Server is the Puppet Server that agents are to use.
type Server struct {
	Name string
	Port int
}

// PuppetConf returns a puppet.conf for a node's agent. Every path in it is
// under the folder that it stands in.
func (s Server) PuppetConf(name node.Certname) string {
	return fmt.Sprintf(`# Written by espm for %[1]s.
[main]
ssldir = $confdir/ssl
certname = %[1]s
server = %[2]s
serverport = %[3]d
`, name, s.Name, s.Port)
}

// Write lays a bundle down under dir so that an agent can use it as its
// --confdir: puppet.conf and ssl/. Each file is durable when it returns, and the private
// key readable by its owner alone. See CheckFree for what may stand there.
func (b Bundle) Write(dir string, name node.Certname) error {
	ssl := filepath.Join(dir, "ssl")
	keys := filepath.Join(ssl, "private_keys")
	for _, sub := range []string{filepath.Join(ssl, "certs"), keys} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(keys, 0o750); err != nil { // #nosec G302 -- a folder, as Puppet has it
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
		mode os.FileMode
	}{
		{filepath.Join(keys, string(name)+".pem"), b.PrivateKeyPEM.Bytes(), 0o600},
		{certificatePath(dir, name), b.CertificatePEM, 0o644},
		{filepath.Join(ssl, "certs", "ca.pem"), b.CAPEM, 0o644},
		{filepath.Join(ssl, "crl.pem"), b.CRLPEM, 0o644},
		{filepath.Join(dir, "puppet.conf"), []byte(b.PuppetConf), 0o644},
	} {
		if f.data == nil {
			continue // the caller holds the key
		}
		if err := durable.OS.WriteFile(f.path, f.data, f.mode); err != nil {
			return err
		}
	}
	return nil
}

func certificatePath(dir string, name node.Certname) string {
	return filepath.Join(dir, "ssl", "certs", string(name)+".pem")
}

// CheckFree makes sure that Write would overwrite no bundle that stands in
// dir. Ask before the certificate is issued. A private key of the caller's may stand there.
func CheckFree(dir string, name node.Certname) error {
	for _, path := range []string{certificatePath(dir, name), filepath.Join(dir, "puppet.conf")} {
		_, err := os.Lstat(path)
		if err == nil {
			return fmt.Errorf("%s stands already: remove it or choose another folder", path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
