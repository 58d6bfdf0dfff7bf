package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/catest"
	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/node"
)

// ownCA is the scene of a site that keeps Puppet Server's CA: espm beside it,
// and a proxy in between that can lose what either says.
type ownCA struct {
	*lifecycle
	test  *testing.T // outlives the subtests: the server runs until it ends
	proxy *proxy
}

func TestPuppetServersOwnCA(t *testing.T) { onEachHost(t, testOwnCA) }

func testOwnCA(t *testing.T, h *host) {
	l := newLab(t, h)
	l.CA = filepath.Join(l.Server, "ca")
	s := &ownCA{test: t, lifecycle: &lifecycle{lab: l, server: startPuppetServer(t, l)}}
	check(t, os.WriteFile(s.clientKey(), readFile(t, s.Server+"/conf/ssl/private_keys/puppet.pem"), 0o600))
	pair, err := tls.LoadX509KeyPair(s.clientFiles())
	check(t, err)
	s.proxy = startProxy(t, fmt.Sprintf("https://localhost:%d", l.Port), pair, s.server.pool)
	l.CAURL, l.CATrust = s.proxy.URL, s.proxy.CA

	t.Run("conformance", func(t *testing.T) {
		authority := s.authority(t, s.direct())
		catest.Run(t, catest.Options{}, func(*testing.T) ca.Authority { return authority })
	})
	t.Run("conformance/signed", s.signed)
	t.Run("check", s.check)
	t.Run("name taken", s.nameTaken)
	t.Run("refused", s.refused)
	t.Run("sign/answer lost", s.signAnswerLost)
	t.Run("sign/silence", s.signSilence)
	t.Run("revoke/answer lost", s.revokeAnswerLost)
	t.Run("revoke/bad name", s.revokeBadName)
	t.Run("revoke/breaks off", s.revokeBreaksOff)
	t.Run("revoke/successor", s.revokeSparesASuccessor)
	t.Run("revoke/no clean", s.revokeWithoutClean)
	t.Run("forbidden", s.forbidden)
	t.Run("client certificate/expired", s.clientExpired)
	t.Run("client certificate/renewed", s.clientRenewed)

	s.espm = initEspm(t, l)
	s.espm.serve(t, "fail", "")
	t.Run("provisioned/p256", func(t *testing.T) { s.provisioned(t, "p256.example.com", "ec-p256", x509.ECDSA) })
	t.Run("provisioned/rsa", func(t *testing.T) { s.provisioned(t, "rsa.example.com", "rsa-2048", x509.RSA) })
	t.Run("doctor", s.doctor)
	t.Run("another agent", s.anotherAgent)
	t.Run("reclassified", s.reclassified)
	t.Run("daemon killed", s.daemonKilled)
	t.Run("terminated", s.terminated)
	t.Run("same name again", s.sameNameAgain)
	if h == here {
		t.Run("first boot", s.firstBoot)
	}
	t.Run("autosigning", s.autosigning)
	t.Run("late terminate", s.lateTerminate)
	t.Run("late revocation", s.lateRevocation)
	t.Run("imported", s.imported)
	t.Run("server without clean", s.serverWithoutClean)
	t.Run("faults under load", s.faultsUnderLoad)
	t.Run("server killed under load", s.serverKilled)
}

func (s *ownCA) clientFiles() (certificate, key string) {
	return s.Server + "/conf/ssl/certs/puppet.pem", s.clientKey()
}

// clientKey is a copy: Puppet Server opens its own key to its group whenever it starts, and on this
// host the group of another root's Puppet is anybody's.
func (l *lab) clientKey() string { return filepath.Join(l.Root, "client_key.pem") }

// direct are the options to reach the server itself.
func (s *ownCA) direct() puppetserver.Options {
	certificate, key := s.clientFiles()
	return puppetserver.Options{
		URL: fmt.Sprintf("https://localhost:%d", s.Port), Certificate: certificate, Key: key,
		CA: s.Server + "/conf/ssl/certs/ca.pem", Quiet: time.Millisecond, SignWait: time.Millisecond,
	}
}

// proxied are the options to reach the server through the proxy.
func (s *ownCA) proxied() puppetserver.Options {
	o := s.direct()
	o.URL, o.CA = s.proxy.URL, s.proxy.CA
	return o
}

func (s *ownCA) authority(t *testing.T, o puppetserver.Options) *puppetserver.Authority {
	t.Helper()
	a, err := puppetserver.New(o)
	check(t, err)
	t.Cleanup(func() { check(t, a.Close()) })
	return a
}

func encodePEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// newRequest asks for a certificate under a name that no test used before.
func newRequest(t *testing.T) ca.Request {
	t.Helper()
	name := node.Certname(strings.ToLower("n" + rand.Text()[:16] + ".example.com"))
	return ca.Request{Certname: name, Key: newKey(t), TTL: time.Hour}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

func query(t *testing.T, r ca.Request) ca.Query {
	t.Helper()
	hash, err := ca.KeyHash(r.PublicKey())
	check(t, err)
	return ca.Query{Certname: r.Certname, KeyHash: hash}
}

func targetOf(cert *x509.Certificate) ca.Target {
	return ca.Target{Serial: node.SerialOf(cert.SerialNumber), Certname: node.Certname(cert.Subject.CommonName)}
}

// sign signs and wants it to succeed.
func (s *ownCA) sign(t *testing.T, a *puppetserver.Authority, r ca.Request) *x509.Certificate {
	t.Helper()
	cert, err := a.Sign(t.Context(), r)
	check(t, err)
	return cert
}

// alive returns the serials of a name that the CA's own files say are in
// force: in the inventory, not at its end, and not on the CRL.
func (s *ownCA) alive(t *testing.T, name node.Certname) []node.Serial {
	t.Helper()
	return s.inForce(t)[name]
}

func (s *ownCA) inForce(t *testing.T) map[node.Certname][]node.Serial {
	t.Helper()
	revoked := s.revokedSerials(t)
	inventory, err := os.ReadFile(filepath.Join(s.CA, "inventory.txt"))
	check(t, err)
	out := map[node.Certname][]node.Serial{}
	for line := range strings.Lines(string(inventory)) {
		fields := strings.Fields(line)
		name := node.Certname(strings.TrimPrefix(fields[3], "/CN="))
		end, err := time.Parse("2006-01-02T15:04:05MST", fields[2])
		check(t, err)
		if serial := node.Serial(strings.TrimPrefix(fields[0], "0x")); !revoked[serial] && end.After(time.Now()) {
			out[name] = append(out[name], serial)
		}
	}
	return out
}

// revokedSerials are those that the CA's CRL lists.
func (s *ownCA) revokedSerials(t *testing.T) map[node.Serial]bool {
	t.Helper()
	crl, err := x509.ParseRevocationList(pemBlock(t, readFile(t, filepath.Join(s.CA, "ca_crl.pem"))))
	check(t, err)
	revoked := map[node.Serial]bool{}
	for _, e := range crl.RevokedCertificateEntries {
		revoked[node.SerialOf(e.SerialNumber)] = true
	}
	return revoked
}

// holds says what the CA's files have under a name.
func (s *ownCA) holds(kind string, name node.Certname) bool {
	_, err := os.Stat(filepath.Join(s.CA, kind, string(name)+".pem"))
	return err == nil
}
