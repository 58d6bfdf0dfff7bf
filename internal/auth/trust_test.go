package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// testCA is a CA, or a leaf.
type testCA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

var serials atomic.Int64 // tests run in parallel

func issue(t *testing.T, by *testCA, name string, edit func(*x509.Certificate)) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), BasicConstraintsValid: true,
	}
	if edit != nil {
		edit(c)
	}
	if by == nil {
		by = &testCA{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key}
}

func asCA(c *x509.Certificate) {
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
}

func (c *testCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

func (c *testCA) keyPEM(t *testing.T) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (c *testCA) crl(t *testing.T, edit func(*x509.RevocationList), revoked ...*testCA) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
	for _, r := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.cert.SerialNumber, RevocationTime: now})
	}
	if edit != nil {
		edit(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, c.cert, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// site is a folder with the files of a root, a CA below it as Puppet's own, and a server.
type site struct {
	Files
	root, sub, client, server *testCA
	log                       bytes.Buffer
	now                       time.Time
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{now: now, Files: Files{Certificate: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), CA: filepath.Join(dir, "ca"), CRL: filepath.Join(dir, "crl")}}
	s.root = issue(t, nil, "root", asCA)
	s.sub = issue(t, s.root, "sub", asCA)
	s.client = issue(t, s.sub, "web1.test", nil)
	s.server = issue(t, s.sub, "puppet.test", nil)
	s.write(t, s.CA, s.sub.pem(), s.root.pem())
	s.write(t, s.CRL, s.sub.crl(t, nil), s.root.crl(t, nil))
	s.write(t, s.Certificate, s.server.pem())
	s.write(t, s.Key, s.server.keyPEM(t))
	return s
}

// write replaces a file as Puppet does.
func (s *site) write(t *testing.T, path string, parts ...[]byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", bytes.Join(parts, nil), 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// open returns a gate that trusts the site's CA.
func (s *site) open(t *testing.T) *Gate {
	t.Helper()
	log := logrus.New()
	log.SetOutput(&s.log)
	clock := func() time.Time { return s.now }
	trust, err := NewTrust(s.Files, clock, log)
	if err != nil {
		t.Fatal(err)
	}
	return NewGate(GateOptions{Trust: trust, Refused: trust.Refused, Now: clock, Log: log})
}

// check shows a certificate as a new connection does.
func (g *Gate) check(leaf *testCA) error {
	return g.NetworkPeer("", []*x509.Certificate{leaf.cert}).Check()
}

func TestVerify(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, s *site)
		says  string // "": accepted
	}{
		"as it should be": {func(*testing.T, *site) {}, ""},
		"other order": {func(t *testing.T, s *site) {
			s.write(t, s.CRL, s.root.crl(t, nil), s.sub.crl(t, nil))
			s.write(t, s.CA, s.root.pem(), s.sub.pem())
		}, ""},
		"another is revoked": {func(t *testing.T, s *site) { s.write(t, s.CRL, s.sub.crl(t, nil, s.server), s.root.crl(t, nil)) }, ""},
		"revoked":            {func(t *testing.T, s *site) { s.write(t, s.CRL, s.sub.crl(t, nil, s.client), s.root.crl(t, nil)) }, `of "CN=web1.test" is revoked by CRL 7`},
		"its CA is revoked":  {func(t *testing.T, s *site) { s.write(t, s.CRL, s.sub.crl(t, nil), s.root.crl(t, nil, s.sub)) }, `of "CN=sub" is revoked by CRL 7`},
		"no CRL of the CA":   {func(t *testing.T, s *site) { s.write(t, s.CRL, s.root.crl(t, nil)) }, `there is no CRL of "CN=sub"`},
		"no CRL of the root": {func(t *testing.T, s *site) { s.write(t, s.CRL, s.sub.crl(t, nil)) }, `there is no CRL of "CN=root"`},
		"CRL of another's key": {func(t *testing.T, s *site) {
			s.write(t, s.CRL, issue(t, nil, "sub", asCA).crl(t, nil), s.root.crl(t, nil))
		}, `there is no CRL of "CN=sub"`},
		"CRL expired":      {func(_ *testing.T, s *site) { s.now = now.Add(time.Hour) }, `the CRL of "CN=sub" expired at 2026-01-02T04:04:05Z`},
		"two CRLs of a CA": {func(t *testing.T, s *site) { s.write(t, s.CRL, s.sub.crl(t, nil), s.sub.crl(t, nil)) }, `there are two lists of "CN=sub"`},
		"CRL missing":      {func(t *testing.T, s *site) { os.Remove(s.CRL) }, "no such file"},
		"CRL empty":        {func(t *testing.T, s *site) { s.write(t, s.CRL) }, "holds no PEM block X509 CRL"},
		"CRL broken": {func(t *testing.T, s *site) {
			s.write(t, s.CRL, []byte("-----BEGIN X509 CRL-----\naGVsbG8=\n-----END X509 CRL-----\n"))
		}, "malformed"},
		"CRL of a part":  {func(t *testing.T, s *site) { s.write(t, s.CRL, s.sub.crl(t, partial)) }, "critical extension 2.5.29.28"},
		"expired":        {func(_ *testing.T, s *site) { s.now = now.Add(25 * time.Hour) }, "certificate has expired"},
		"not yet":        {func(_ *testing.T, s *site) { s.now = now.Add(-2 * time.Hour) }, "not yet valid"},
		"for servers":    {func(t *testing.T, s *site) { s.client = issue(t, s.sub, "web1.test", forServers) }, "incompatible key usage"},
		"of another CA":  {func(t *testing.T, s *site) { s.client = issue(t, issue(t, s.root, "sub", asCA), "web1.test", nil) }, "unknown authority"},
		"the CA itself":  {func(_ *testing.T, s *site) { s.client = s.root }, "it is a CA's"},
		"below a client": {func(t *testing.T, s *site) { s.client = issue(t, s.client, "x", nil) }, "unknown authority"},
		"the CA is gone": {func(_ *testing.T, s *site) { os.Remove(s.CA) }, "no such file"},
		"another CA's files now": {func(t *testing.T, s *site) {
			other := newSite(t)
			s.write(t, s.CA, other.root.pem())
			s.write(t, s.CRL, other.root.crl(t, nil))
		}, "unknown authority"},
		"only the CA in the file": {func(t *testing.T, s *site) { s.write(t, s.CA, s.sub.pem()); s.write(t, s.CRL, s.sub.crl(t, nil)) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			gate := s.open(t)
			peer := gate.NetworkPeer("", []*x509.Certificate{s.client.cert})
			if err := peer.Check(); err != nil {
				t.Fatal(err)
			}
			before := s.client
			c.spoil(t, s) // while it is open, so that this is read again
			gate.o.Trust.Refresh()
			err := gate.check(s.client)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %q", err, c.says)
			}
			if refused, ok := errors.AsType[*RefusedError](err); err != nil && (!ok || refused.Subject != s.client.cert.Subject.String() || refused.Serial == "") {
				t.Errorf("got %#v", err)
			}
			if s.client == before && !s.now.Before(now) {
				if again := peer.Check(); (again == nil) != (err == nil) {
					t.Errorf("a peer from before: %v", again)
				}
			}
		})
	}
}

// A CRL that espm itself wrote is not read from the file again, while the file has that content. The CRLs of other CAs are.
func TestKeptCRL(t *testing.T) {
	s := newSite(t)
	own, root := s.sub.crl(t, nil), s.root.crl(t, nil)
	s.write(t, s.CRL, own, root)
	lists := false
	s.Kept = func() *KeptCRL {
		return &KeptCRL{
			Issuer: s.sub.cert, Number: "8", NextUpdate: now.Add(time.Hour), PEM: slices.Concat(own, root), Rest: root,
			Lists: func(serial *big.Int) bool { return lists && serial.Cmp(s.client.cert.SerialNumber) == 0 },
		}
	}
	gate := s.open(t)
	check := func(says string) {
		t.Helper()
		gate.o.Trust.Refresh()
		if err := gate.check(s.client); (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	check("")
	lists = true
	check("is revoked by CRL 8")
	s.write(t, s.CRL, own, root, []byte("\n"))
	check("") // another program wrote the file, so the file counts
	s.write(t, s.CRL, s.sub.crl(t, nil, s.client), root)
	check("is revoked by CRL 7")
	s.write(t, s.CRL, own, root)
	check("is revoked by CRL 8")
	lists, root = false, s.root.crl(t, nil, s.sub)
	s.write(t, s.CRL, own, root)
	check(`"CN=sub" is revoked by CRL 7`)
	s.write(t, s.CA, s.root.pem())
	s.write(t, s.CRL, own, root)
	check("unknown authority")
}

func forServers(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

func partial(l *x509.RevocationList) {
	l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}
}

// A bad pair leaves the one that is in use; a good one is taken up.
func TestServerCertificateIsReadAgain(t *testing.T) {
	s := newSite(t)
	gate := s.open(t)
	serves := func(want *testCA, says string) {
		t.Helper()
		s.log.Reset()
		gate.o.Trust.Refresh()
		got, err := gate.TLS().GetCertificate(nil)
		if err != nil || !bytes.Equal(got.Certificate[0], want.cert.Raw) {
			t.Errorf("another certificate, %v", err)
		}
		if !strings.Contains(s.log.String(), says) || says == "" && s.log.Len() > 0 {
			t.Errorf("log: %s", &s.log)
		}
	}
	serves(s.server, "")
	next := issue(t, s.sub, "puppet.test", func(c *x509.Certificate) { c.DNSNames = []string{"Espm.test"} })
	s.write(t, s.Certificate, next.pem())
	serves(s.server, "can't be used, the old one stays")
	serves(s.server, "") // said once
	s.write(t, s.Key, next.keyPEM(t))
	serves(next, "read again")
	if got := gate.o.Trust.Names(); !slices.Equal(got, []string{"puppet.test", "espm.test"}) {
		t.Errorf("it is good for %v", got)
	}
	os.Remove(s.Key)
	serves(next, "can't be used, the old one stays")
}

func TestTrustWithoutFiles(t *testing.T) {
	for _, spoil := range []func(*site) string{
		func(s *site) string { return s.Certificate }, func(s *site) string { return s.Key }, func(s *site) string { return s.CA },
	} {
		s := newSite(t)
		path := spoil(s)
		os.Remove(path)
		if _, err := NewTrust(s.Files, time.Now, logrus.New()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("without %s: %v", path, err)
		}
	}
	// A CRL that is missing keeps the daemon from nothing but certificates.
	s := newSite(t)
	os.Remove(s.CRL)
	gate := s.open(t)
	if !strings.Contains(s.log.String(), "no client certificate is accepted") {
		t.Errorf("log: %s", &s.log)
	}
	s.write(t, s.CRL, s.sub.crl(t, nil), s.root.crl(t, nil))
	gate.o.Trust.Refresh()
	if err := gate.check(s.client); err != nil {
		t.Errorf("when it is there: %v", err)
	}
}
