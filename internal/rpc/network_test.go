package rpc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// issuer signs what the authority would not, with its key.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

func openIssuer(t *testing.T, dir string) *issuer {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "ca_crt.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca_crt.pem"), filepath.Join(dir, "ca_key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{pair.Leaf, pair.PrivateKey.(crypto.Signer), text}
}

var nextSerial = int64(1 << 40)

// leaf makes a certificate that is as Puppet's but for what edit changes.
func (i *issuer) leaf(t *testing.T, name string, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	nextSerial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(nextSerial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// withAuthRole puts Puppet's pp_auth_role into a certificate.
func withAuthRole(t *testing.T, role string) func(*x509.Certificate) {
	value, err := asn1.MarshalWithParams(role, "utf8")
	if err != nil {
		t.Fatal(err)
	}
	id := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 34380, 1, 3, 13}
	return func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{{Id: id, Value: value}} }
}

func writePair(t *testing.T, dir string, pair tls.Certificate) (cert, key string) {
	t.Helper()
	keyPEM, err := ca.MarshalKeyPEM(pair.PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
	if err := errors.Join(os.WriteFile(cert, certPEM, 0o600), os.WriteFile(key, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

var listed = []auth.Principal{
	{Certname: "admin.test", Role: node.Admin},
	{Certname: "provisioner.test", Role: node.Provisioner},
	{Certname: "reader.test", Role: node.Reader},
	{AuthRole: "readers", Role: node.Reader},
	{AuthRole: "admins", Role: node.Admin},
}

// networkRig is a rig on the network, whose server's certificate is of its own CA.
type networkRig struct {
	*rig
	ca *issuer
}

func newNetworkRig(t *testing.T, limits Limits) *networkRig {
	t.Helper()
	r := prepareRig(t, bolt.Options{})
	return r.onNetwork(t, limits, filepath.Join(r.dir, "ca", "ca_crl.pem"))
}

// onNetwork serves on the network, too, where certificates are looked up in a CRL file.
func (r *rig) onNetwork(t *testing.T, limits Limits, crl string) *networkRig {
	t.Helper()
	n := &networkRig{rig: r, ca: openIssuer(t, filepath.Join(r.dir, "ca"))}
	r.serve(t, limits, func(a *auth.GateOptions) {
		files := auth.Files{CA: filepath.Join(r.dir, "ca", "ca_crt.pem"), CRL: crl}
		files.Certificate, files.Key = writePair(t, r.dir, n.ca.leaf(t, "localhost", nil))
		var err error
		if a.Trust, err = auth.NewTrust(files, time.Now, discard()); err != nil {
			t.Fatal(err)
		}
		a.Refused = a.Trust.Refused
		if a.Principals, err = auth.NewPrincipals(listed); err != nil {
			t.Fatal(err)
		}
	})
	return n
}

// client is how the network's clients speak TLS to the rig.
func (n *networkRig) client(certs ...tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(n.ca.pem)
	return &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: []string{"h2"},
		// Shown whatever CAs the server names, as a hostile client would.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(certs) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certs[0], nil
		}}
}

func (n *networkRig) dial(t *testing.T, certs ...tls.Certificate) *grpc.ClientConn {
	return n.dialWith(t, credentials.NewTLS(n.client(certs...)))
}

func (n *networkRig) dialWith(t *testing.T, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+n.address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (n *networkRig) bundle(t *testing.T, p *espmv1.ProvisionNodeResponse) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(p.GetBundle().GetCertificatePem(), p.GetBundle().GetPrivateKeyPem())
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// foreign returns another CA of the same name.
func foreign(t *testing.T) *issuer {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := directory.Create(dir, directory.CreateOptions{Host: "puppet.test", Key: ca.ECP256}); err != nil {
		t.Fatal(err)
	}
	return openIssuer(t, dir)
}

// caller is one way to call, and what is to come of it.
type caller struct {
	conn *grpc.ClientConn
	ctx  context.Context
	role node.Role  // where it is let in
	code codes.Code // of every refusal; else what the table says
	log  string     // what the daemon's log says of it
}

// callers are all kinds of them, by name.
func (n *networkRig) callers(t *testing.T) map[string]caller {
	t.Helper()
	ctx := t.Context()
	revoked := n.bundle(t, n.provision(t, "revoked.test", ""))
	if gone := n.rig.terminateAndWait(t, "revoked.test"); gone != revokedState {
		t.Fatalf("the certificate is %v", gone)
	}
	n.refuses(t, revoked)
	plain := n.dial(t)
	token := func(name string, role espmv1.Role) context.Context { return n.token(t, name, role, nil) }
	ended := token("ended", espmv1.Role_ROLE_ADMIN)
	if _, err := espmv1.NewTokenServiceClient(n.conn).RevokeToken(ctx, &espmv1.RevokeTokenRequest{Name: "ended"}); err != nil {
		t.Fatal(err)
	}
	late := n.expired(t, "late")
	with := func(name string, edit func(*x509.Certificate)) *grpc.ClientConn {
		return n.dial(t, n.ca.leaf(t, name, edit))
	}
	admin := with("admin.test", nil)
	return map[string]caller{
		"local":                  {n.conn, ctx, node.Admin, 0, ""},
		"admin":                  {admin, ctx, node.Admin, 0, ""},
		"provisioner":            {with("provisioner.test", nil), ctx, node.Provisioner, 0, ""},
		"reader":                 {with("reader.test", nil), ctx, node.Reader, 0, ""},
		"auth role":              {with("any.test", withAuthRole(t, "readers")), ctx, node.Reader, 0, ""},
		"certname before role":   {with("reader.test", withAuthRole(t, "admins")), ctx, node.Reader, 0, ""},
		"admin token":            {plain, token("a", espmv1.Role_ROLE_ADMIN), node.Admin, 0, ""},
		"provisioner token":      {plain, token("p", espmv1.Role_ROLE_PROVISIONER), node.Provisioner, 0, ""},
		"reader token":           {plain, token("r", espmv1.Role_ROLE_READER), node.Reader, 0, ""},
		"token before cert":      {admin, token("r2", espmv1.Role_ROLE_READER), node.Reader, 0, ""},
		"no role":                {with("other.test", nil), ctx, "", codes.PermissionDenied, "certname:other.test"},
		"no role, unlisted role": {with("other.test", withAuthRole(t, "else")), ctx, "", codes.PermissionDenied, "not permitted"},
		"none":                   {plain, ctx, "", codes.Unauthenticated, "neither a token nor a certificate"},
		"wrong token":            {plain, bearing(t, "espm_"+strings.Repeat("A", 43)), "", codes.Unauthenticated, "none has that hash"},
		"no token at all":        {plain, bearing(t, "hunter2"), "", codes.Unauthenticated, "no token of espm's"},
		"wrong token locally":    {n.conn, bearing(t, "hunter2"), "", codes.Unauthenticated, "no token of espm's"},
		"expired token":          {plain, late, "", codes.Unauthenticated, "token late expired at"},
		"revoked token":          {plain, ended, "", codes.Unauthenticated, "none has that hash"},
		"wrong token with cert":  {admin, bearing(t, "hunter2"), "", codes.Unauthenticated, "no token of espm's"},
		"revoked certificate":    {n.dial(t, revoked), ctx, "", codes.Unavailable, "is revoked by CRL"},
		"expired certificate": {with("admin.test", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), ctx, "", codes.Unavailable,
			"certificate has expired"},
		"another CA": {n.dial(t, foreign(t).leaf(t, "admin.test", nil)), ctx, "", codes.Unavailable, "signed by unknown authority"},
		"server only": {with("admin.test", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), ctx, "", codes.Unavailable,
			"incompatible key usage"},
		"a CA's": {with("admin.test", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), ctx, "", codes.Unavailable,
			"it is a CA's"},
		"plain text": {n.dialWith(t, insecure.NewCredentials()), ctx, "", codes.Unavailable, "first record does not look like a TLS handshake"},
		"TLS 1.2": {n.dialWith(t, credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})), ctx, "", codes.Unavailable,
			"unsupported versions"},
	}
}

// expired returns the context of a call with a token whose life has ended.
func (r *rig) expired(t *testing.T, name string) context.Context {
	t.Helper()
	resp, err := espmv1.NewTokenServiceClient(r.conn).CreateToken(t.Context(), &espmv1.CreateTokenRequest{
		Name: name, Role: espmv1.Role_ROLE_ADMIN, Ttl: durationpb.New(auth.MinTokenTTL),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.ahead.Store(int64(auth.MinTokenTTL))
	return bearing(t, resp.GetSecret())
}

func codeOf(err error) codes.Code { return status.Code(err) }
