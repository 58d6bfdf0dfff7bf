// Package bootstrap makes the bundle of an instance: the files that its Puppet agent needs to authenticate
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

// Bundle has the data of the files that an agent needs.
type Bundle struct {
	CertificatePEM []byte
	PrivateKeyPEM  secret.Text // empty if the caller has the key
	CAPEM          []byte      // the signing CA first
	CRLPEM         []byte
	PuppetConf     string
	MasterURL      string // of the Puppet Server, https://HOST:PORT
}

// file is a file of a bundle. The path of a file is relative to the agent's --confdir.
type file struct {
	path string
	data []byte
	mode os.FileMode
}

// dirs are the folders of a bundle.
var dirs = []file{
	{path: "ssl", mode: 0o755},
	{path: "ssl/certs", mode: 0o755},
	{path: "ssl/private_keys", mode: 0o750},
}

// files returns the files of the bundle that have data.
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

// Paths of files in a bundle.
const (
	caPath   = "ssl/certs/ca.pem"
	crlPath  = "ssl/crl.pem"
	confPath = "puppet.conf"
)

func keyPath(name node.Certname) string         { return "ssl/private_keys/" + string(name) + ".pem" }
func certificatePath(name node.Certname) string { return "ssl/certs/" + string(name) + ".pem" }

// Write writes a bundle, puppet.conf and ssl/, to dir, which an agent can use as its --confdir. Each file
// is durable when Write returns. Only the owner can read the private key. CheckFree says which files may
// exist before the call.
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

// CheckFree returns an error if Write would overwrite a bundle in
// dir. Call it before the certificate is issued. The caller's private key may exist already.
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
		return fmt.Errorf("%s exists already: remove it or choose another %s", path, kind)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return err
	}
}
