package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// stranger is a node with a good certificate of espm's CA that espm never
// saw: one that was signed by hand, as a site that moves to espm has many.
func (l *lab) stranger(t *testing.T, certname string) agent {
	t.Helper()
	a := agent{lab: l, host: l.Host, certname: certname, dir: filepath.Join(l.Root, "instances", certname)}
	caPEM := readFile(t, l.Dir+"/ca/ca_crt.pem")
	ca, err := x509.ParseCertificate(pemBlock(t, caPEM))
	check(t, err)
	caKey := parseKey(t, pemBlock(t, readFile(t, l.Dir+"/ca/ca_key.pem")))

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: certname},
		DNSNames:     []string{certname},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, &key.PublicKey, caKey)
	check(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	check(t, err)

	for name, content := range map[string][]byte{
		"puppet.conf": fmt.Appendf(nil, "[main]\ncertname = %s\nserver = localhost\nserverport = %d\nssldir = $confdir/ssl\n",
			certname, l.Port),
		"ssl/certs/ca.pem":                      caPEM,
		"ssl/crl.pem":                           readFile(t, l.CRL),
		"ssl/certs/" + certname + ".pem":        pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}),
		"ssl/private_keys/" + certname + ".pem": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	} {
		path := filepath.Join(a.dir, name)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path, content, 0o600))
	}
	return a
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	check(t, err)
	return content
}

// pemBlock returns the first block's content: the signing CA stands first.
func pemBlock(t *testing.T, text []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM block")
	}
	return block.Bytes
}

// parseKey reads any of the forms of a private key.
func parseKey(t *testing.T, der []byte) crypto.Signer {
	t.Helper()
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	check(t, err)
	return key.(crypto.Signer)
}
