package oldca

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Site is a CA directory after ten years of use.
type Site struct {
	Dir     string   // a symbolic link to the folder
	Crl     string   // the target of Dir's ca_crl.pem, which is a symbolic link
	Foreign []string // the CRLs in Crl that are not the CA's, in order: the root's, then one of an issuer outside the chain
}

// Serials in the CRL of a site.
const (
	ExpiredGMT    = "1001" // expired years ago, in a line with dates in GMT
	ExpiredOffset = "1002" // expired, in a line with dates that have an offset
	ExpiredLower  = "1AB3" // expired, in a line with a serial in lower case and a Windows line end
	ExpiredLast   = "1006" // expired, in the last line, which has no line end
	Unlisted      = "1004" // not in the inventory
	Live          = "1005" // not expired
	Left          = "2001" // not expired, and the certificate is still in signed/
)

// The last line has no line end. One of the two certificates of twice.example.com has no file.
const inventory = "# Inventory of signed certificates\n# SERIAL NOT_BEFORE NOT_AFTER SUBJECT\n" +
	"0x0001 2011-01-02T03:04:05GMT 2041-01-02T03:04:05GMT /CN=Puppet CA: old\n" +
	"0x1001 2011-01-02T03:04:05GMT 2016-01-02T03:04:05GMT /CN=a.example.com\n" +
	"0x1002 2012-01-02T03:04:05+0100 2017-01-02T03:04:05+0100 /CN=b.example.com\n" +
	"0x1ab3 2013-01-02T03:04:05UTC 2018-01-02T03:04:05UTC /CN=c.example.com\r\n" +
	"0x1005 2020-01-02T03:04:05UTC 2040-01-02T03:04:05UTC /CN=d.example.com\n" +
	"0x2001 2020-01-02T03:04:05UTC 2040-01-02T03:04:05UTC /CN=left.example.com\n" +
	"\nby hand: the disk was full here\n" +
	"0x3001 2020-01-02T03:04:05GMT 2040-01-02T03:04:05GMT /CN=twice.example.com\n" +
	"0x3002 2021-01-02T03:04:05GMT 2040-01-02T03:04:05GMT /CN=twice.example.com\n" +
	"0x1006 2014-01-02T03:04:05GMT 2019-01-02T03:04:05GMT /CN=e.example.com"

// MakeSite makes a site. espm can import three of the certificates in signed/: sha1, md5 and twice
// (.example.com).
func MakeSite(t testing.TB) Site {
	t.Helper()
	real := Make(t, Brainpool)
	s := Site{Dir: filepath.Join(t.TempDir(), "ca"), Crl: filepath.Join(t.TempDir(), "crl.pem")}
	_, root, _ := strings.Cut(read(t, filepath.Join(real, "ca_crl.pem")), "-----END X509 CRL-----\n")
	s.Foreign = []string{root, outsideCRL(t)}
	write(t, s.Crl, siteCRL(t, real)+strings.Join(s.Foreign, ""))
	crl := filepath.Join(real, "ca_crl.pem")
	if err := errors.Join(os.Symlink(real, s.Dir), os.Remove(crl), os.Symlink(s.Crl, crl)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(real, "inventory.txt"), inventory)
	write(t, filepath.Join(real, "serial"), "3003")
	write(t, filepath.Join(real, "infra_serials"), "")
	Leaf(t, real, "sha1.example.com", RSAKey(), "-sha1", "-set_serial", "0x4001")
	Leaf(t, real, "md5.example.com", RSAKey(), "-md5", "-set_serial", "0x4002")
	Leaf(t, real, "twice.example.com", RSAKey(), "-set_serial", "0x3002")
	Leaf(t, real, "left.example.com", RSAKey(), "-set_serial", "0x"+Left)
	Leaf(t, real, "expired.example.com", RSAKey(), "-days", "-1", "-set_serial", "0x4003")
	Leaf(t, real, "long.example.com", RSAKey(), "-set_serial", "0x01"+strings.Repeat("00", 20))
	Leaf(t, real, "curve.example.com", BrainpoolKey(), "-set_serial", "0x4004")
	signed := func(name string) string { return filepath.Join(real, "signed", name) }
	write(t, signed("garbage.example.com.pem"), "not a certificate")
	write(t, signed("Upper Case.pem"), read(t, signed("sha1.example.com.pem")))
	write(t, signed("README"), "do not touch")
	if err := os.Mkdir(signed("folder.example.com.pem"), 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// siteCRL returns the CA's own CRL: version 1, signed with SHA-1.
func siteCRL(t testing.TB, dir string) string {
	t.Helper()
	in := maker{t, t.TempDir()}
	write(t, filepath.Join(in.dir, "openssl.cnf"), extensions)
	var index strings.Builder
	for _, serial := range []string{ExpiredGMT, ExpiredOffset, ExpiredLower, ExpiredLast, Unlisted, Live, Left} {
		fmt.Fprintf(&index, "R\t400101000000Z\t150101000000Z\t%s\tunknown\t/CN=%s\n", serial, serial)
	}
	write(t, filepath.Join(in.dir, "index.txt"), index.String())
	return in.openssl("ca", "-config", "openssl.cnf", "-gencrl", "-md", "sha1", "-cert", filepath.Join(dir, "ca_crt.pem"), "-keyfile", filepath.Join(dir, "ca_key.pem"))
}

// outsideCRL returns the CRL of an issuer that is in no chain.
func outsideCRL(t testing.TB) string {
	t.Helper()
	in := maker{t, t.TempDir()}
	write(t, filepath.Join(in.dir, "openssl.cnf"), extensions)
	write(t, filepath.Join(in.dir, "index.txt"), "")
	in.openssl(append([]string{"genpkey", "-out", "key.pem"}, RSAKey()...)...)
	in.openssl("req", "-x509", "-config", "openssl.cnf", "-extensions", "v3", "-new", "-key", "key.pem", "-days", "30", "-subj", "/CN=Elsewhere", "-out", "ca.pem")
	return in.openssl("ca", "-config", "openssl.cnf", "-gencrl", "-cert", "ca.pem", "-keyfile", "key.pem")
}
