// Package oldca makes CAs of old sites with openssl. Puppet Server and OpenSSL accept the keys and hashes
// of such a CA, but Go's x509 does not.
package oldca

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/test/need"
)

// Root is the kind of a root CA.
type Root string

const (
	SHA1      Root = "sha1"      // RSA; its certificate, its CRL and the certificates that it issues are signed with SHA-1
	PSS       Root = "rsa-pss"   // a key that is only for RSA-PSS
	Brainpool Root = "brainpool" // an EC key on brainpoolP256r1
	Secp256k1 Root = "secp256k1" // an EC key on secp256k1
	Negative  Root = "negative"  // RSA; a negative serial in its certificate and in its CRL
	NoKeyID   Root = "no-key-id" // RSA; neither the root nor the CA below has a subject key identifier
)

// Roots returns all kinds.
func Roots() []Root { return []Root{SHA1, PSS, Brainpool, Secp256k1, Negative, NoKeyID} }

// newKey returns the arguments of openssl genpkey, and further arguments of openssl req, ca and x509.
func (r Root) newKey() (key, sign []string) {
	switch r {
	case SHA1:
		return []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-sha1"}
	case PSS:
		return []string{"-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-sha256"}
	case Brainpool:
		return []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:brainpoolP256r1"}, []string{"-sha256"}
	case Secp256k1:
		return []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"}, []string{"-sha256"}
	}
	return []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-sha256"}
}

const extensions = `
[ca]
default_ca = own
[own]
database = index.txt
default_md = sha256
default_crl_days = 3650
unique_subject = no
[req]
distinguished_name = dn
[dn]
[v3]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = critical, serverAuth, clientAuth
`

// Make makes a CA directory. The CA has an RSA key and a certificate from a root of the given kind. Both
// CRLs are version 1, without a number. The root's CRL lists one serial.
func Make(t testing.TB, root Root) (dir string) {
	t.Helper()
	need.Program(t, "openssl")
	dir, work := filepath.Join(t.TempDir(), "ca"), t.TempDir()
	cnf := extensions
	if root == NoKeyID {
		cnf = strings.Replace(cnf, "subjectKeyIdentifier = hash", "subjectKeyIdentifier = none", 1)
	}
	write(t, filepath.Join(work, "openssl.cnf"), cnf)
	rootSerial, listed := "17", "1A"
	if root == Negative {
		rootSerial, listed = "-17", "-1A"
	}
	key, sign := root.newKey()
	in := maker{t, work}
	in.openssl(append([]string{"genpkey", "-out", "root_key.pem"}, key...)...)
	in.openssl(append([]string{"req", "-x509", "-config", "openssl.cnf", "-extensions", "v3", "-new", "-key", "root_key.pem", "-days", "3650",
		"-set_serial", rootSerial, "-subj", "/CN=Old Root", "-out", "root.pem"}, sign...)...)
	in.openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "ca_key.pem")
	in.openssl("req", "-config", "openssl.cnf", "-new", "-key", "ca_key.pem", "-subj", "/CN=Puppet CA: old", "-out", "ca.csr")
	in.openssl(append([]string{"x509", "-req", "-in", "ca.csr", "-CA", "root.pem", "-CAkey", "root_key.pem", "-set_serial", "2", "-days", "3650",
		"-extfile", "openssl.cnf", "-extensions", "v3", "-out", "ca.pem"}, sign...)...)
	crl := func(name string, more ...string) string {
		return in.openssl(append([]string{"ca", "-config", "openssl.cnf", "-gencrl", "-cert", name + ".pem", "-keyfile", name + "_key.pem"}, more...)...)
	}
	write(t, filepath.Join(work, "index.txt"), fmt.Sprintf("R\t350101000000Z\t250101000000Z\t%s\tunknown\t/CN=gone\n", listed))
	rootCRL := crl("root", "-md", strings.TrimPrefix(sign[0], "-"))
	write(t, filepath.Join(work, "index.txt"), "R\t350101000000Z\t250101000000Z\t02\tunknown\t/CN=Puppet CA: old\n")
	revoked := crl("root", "-md", strings.TrimPrefix(sign[0], "-"))
	write(t, filepath.Join(work, "index.txt"), "")
	for _, sub := range []string{"", "signed"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "ca_key.pem"), read(t, filepath.Join(work, "ca_key.pem")))
	write(t, filepath.Join(dir, "ca_crt.pem"), read(t, filepath.Join(work, "ca.pem"))+read(t, filepath.Join(work, "root.pem")))
	write(t, filepath.Join(dir, "ca_crl.pem"), crl("ca")+rootCRL)
	write(t, filepath.Join(dir, "inventory.txt"), "")
	write(t, filepath.Join(dir, "revoked_crl.pem"), revoked)
	return dir
}

// RevokeCA returns a CRL of the root that revokes the CA. dir is a directory that Make made.
func RevokeCA(t testing.TB, dir string) string {
	t.Helper()
	return read(t, filepath.Join(dir, "revoked_crl.pem"))
}

// Leaf issues a certificate from a CA directory, with a new key. key are arguments for openssl genpkey,
// more are arguments for openssl x509. Leaf writes signed/NAME.pem, but no line in the inventory.
func Leaf(t testing.TB, dir, name string, key []string, more ...string) {
	t.Helper()
	in := maker{t, t.TempDir()}
	write(t, filepath.Join(in.dir, "openssl.cnf"), extensions)
	in.openssl(append([]string{"genpkey", "-out", "key.pem"}, key...)...)
	in.openssl("req", "-config", "openssl.cnf", "-new", "-key", "key.pem", "-subj", "/CN="+name, "-out", "leaf.csr")
	in.openssl(append([]string{"x509", "-req", "-in", "leaf.csr", "-CA", filepath.Join(dir, "ca_crt.pem"), "-CAkey", filepath.Join(dir, "ca_key.pem"),
		"-days", "300", "-extfile", "openssl.cnf", "-extensions", "leaf", "-out", filepath.Join(dir, "signed", name+".pem")}, more...)...)
}

// RSAKey returns the genpkey arguments of an RSA key.
func RSAKey() []string {
	return []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}
}

// BrainpoolKey returns the genpkey arguments of a key that Go can't parse.
func BrainpoolKey() []string {
	return []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:brainpoolP256r1"}
}

// maker runs openssl in dir.
type maker struct {
	t   testing.TB
	dir string
}

func (m maker) openssl(args ...string) string {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), "openssl", args...)
	cmd.Dir = m.dir
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		m.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, complaint.String())
	}
	return string(out)
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
