package auth

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/test/oldca"
)

// A root that crypto/x509 can't verify by does not shut clients out: the CA below it is trusted. But it is not trusted
// when the root's CRL lists it, or has no CRL.
func TestOldRoots(t *testing.T) {
	for _, root := range oldca.Roots() {
		t.Run(string(root), func(t *testing.T) {
			t.Parallel()
			dir := oldca.Make(t, root)
			oldca.Leaf(t, dir, "web1.test", oldca.RSAKey())
			read := func(name string) string {
				data, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				return string(data)
			}
			leaf, err := pemfile.First([]byte(read("signed/web1.test.pem")))
			if err != nil {
				t.Fatal(err)
			}
			good := read("ca_crl.pem")
			check := func(crls string) error {
				t.Helper()
				if err := os.WriteFile(filepath.Join(dir, "crl.pem"), []byte(crls), 0o600); err != nil {
					t.Fatal(err)
				}
				site := newSite(t)
				trust, err := NewTrust(Files{Certificate: site.Certificate, Key: site.Key, CA: filepath.Join(dir, "ca_crt.pem"), CRL: filepath.Join(dir, "crl.pem")}, time.Now, logrus.New())
				if err != nil {
					t.Fatal(err)
				}
				gate := NewGate(GateOptions{Trust: trust, Refused: trust.Refused, Now: time.Now, Log: logrus.New()})
				return gate.NetworkPeer("", []*x509.Certificate{leaf}).Check()
			}
			if err := check(good); err != nil {
				t.Errorf("a client below such a root: %v", err)
			}
			own, foreign, _ := strings.Cut(good, "-----END X509 CRL-----\n")
			own += "-----END X509 CRL-----\n"
			if err := check(own); err == nil || !strings.Contains(err.Error(), `no CRL of "CN=Old Root"`) {
				t.Errorf("without the root's CRL: %v", err)
			}
			if err := check(foreign); err == nil || !strings.Contains(err.Error(), "no CRL of \"CN=Puppet CA: old\"") {
				t.Errorf("without the CA's CRL: %v", err)
			}
			if err := check(own + oldca.RevokeCA(t, dir)); err == nil || !strings.Contains(err.Error(), "is revoked by CRL 0") {
				t.Errorf("the root has revoked the CA: %v", err)
			}
		})
	}
}
