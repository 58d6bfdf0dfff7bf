// Package bootstrap makes what an instance needs to run its agent trusted
// from the first boot.
package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

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
	MasterURL      string // of the Puppet Server, https://HOST:PORT
}

// file is one of a bundle, under a folder that an agent can use as its --confdir.
type file struct {
	path string
	data []byte
	mode os.FileMode
}

// dirs are the folders that the files of a bundle are in.
var dirs = []file{
	{path: "ssl", mode: 0o755},
	{path: "ssl/certs", mode: 0o755},
	{path: "ssl/private_keys", mode: 0o750},
}

// files are the bundle's; what it has not is not among them.
func (b Bundle) files(name node.Certname) []file {
	all := []file{
		{keyPath(name), b.PrivateKeyPEM.Bytes(), 0o600},
		{certificatePath(name), b.CertificatePEM, 0o644},
		{caPath, b.CAPEM, 0o644},
		{crlPath, b.CRLPEM, 0o644},
		{confPath, []byte(b.PuppetConf), 0o644},
	}
	return slices.DeleteFunc(all, func(f file) bool { return f.data == nil })
}

// Where files of a bundle are in its folder.
const (
	caPath   = "ssl/certs/ca.pem"
	crlPath  = "ssl/crl.pem"
	confPath = "puppet.conf"
)

func keyPath(name node.Certname) string         { return "ssl/private_keys/" + string(name) + ".pem" }
func certificatePath(name node.Certname) string { return "ssl/certs/" + string(name) + ".pem" }

// Write lays a bundle down under dir so that an agent can use it as its
// --confdir: puppet.conf and ssl/. Each file is durable when it returns, and the private
// key readable by its owner alone. See CheckFree for what may stand there.
func (b Bundle) Write(dir string, name node.Certname) error {
	for _, sub := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, sub.path), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "ssl/private_keys"), 0o750); err != nil { // #nosec G302 -- a folder, as Puppet has it
		return err
	}
	for _, f := range b.files(name) {
		if err := durable.OS.WriteFile(filepath.Join(dir, f.path), f.data, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// CheckFree makes sure that Write would overwrite no bundle that stands in
// dir. Ask before the certificate is issued. A private key of the caller's may stand there.
func CheckFree(dir string, name node.Certname) error {
	for _, path := range []string{certificatePath(name), confPath} {
		if err := checkFree(filepath.Join(dir, path), "folder"); err != nil {
			return err
		}
	}
	return nil
}

// CheckFreeFile is CheckFree for a single file.
func CheckFreeFile(path string) error { return checkFree(path, "file") }

func checkFree(path, kind string) error {
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		return fmt.Errorf("%s stands already: remove it or choose another %s", path, kind)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return err
	}
}
