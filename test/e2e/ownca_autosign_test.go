package e2e

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// A site that autosigns gets its nodes provisioned with the life that its
// server gives. Another life can't be had: the certificate is revoked, and the caller told why.
func (s *ownCA) autosigning(t *testing.T) {
	list := filepath.Join(s.Server, "conf/autosign.conf") // read for each request
	check(t, os.WriteFile(list, []byte("*.auto.example.com\n"), 0o644))
	defer func() { check(t, os.Remove(list)) }()

	made, _ := s.espm.provision(t, "key.auto.example.com")
	made.run(t).exits(t, changed).presigned(t)
	csr := filepath.Join(t.TempDir(), "csr.pem")
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "csr.auto.example.com"}}, newKey(t))
	check(t, err)
	check(t, os.WriteFile(csr, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0o600))
	s.espm.provision(t, "csr.auto.example.com", "--csr", csr)
	for _, name := range []node.Certname{"key.auto.example.com", "csr.auto.example.com"} {
		if alive := s.alive(t, name); len(alive) != 1 {
			t.Errorf("%s: in force are %v", name, alive)
		}
	}

	const short = "ttl.auto.example.com"
	r := s.espm.try(t, "node", "provision", short, "--ttl", "24h", "--out", filepath.Join(t.TempDir(), "out"))
	if r.code != 4 || !strings.Contains(r.stderr, "autosign") || !strings.Contains(r.stderr, "[CA_REFUSED]") {
		t.Errorf("with a ttl: exit %d, %s", r.code, r.stderr)
	}
	waitFor(t, 30*time.Second, "what was signed is revoked", func() error {
		if alive := s.alive(t, short); alive != nil {
			return fmt.Errorf("in force are %v", alive)
		}
		return nil
	})
	s.espm.provision(t, short)
}
