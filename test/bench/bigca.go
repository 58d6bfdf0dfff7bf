package main

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
)

// keyCompromise is the reason that Puppet Server gives for a revocation.
const keyCompromise = 1

// makeCA makes the CA of a Puppet Server, with the given number of certificates in its inventory and in
// its CRL.
func makeCA(dir string, issued, revoked int) error {
	if err := directory.Create(dir, directory.CreateOptions{Host: "puppet", Key: ca.RSA4096}); err != nil || issued == 0 {
		return err
	}
	return past{first: 2, issued: issued, revoked: revoked}.write(dir) // 1 is the serial of the CA itself
}

// past describes the issued and revoked certificates of a CA.
type past struct {
	first           int64 // the first serial; the others follow
	issued, revoked int
}

// serial returns the i-th serial number. Long serials are not sorted, like the random serials of espm.
func (p past) serial(i int) int64 {
	if p.first == longSerial {
		const odd = 0x1E3779B97F4A7C15 // odd, so that all serials differ
		return longSerial | int64(i)*odd&(longSerial-1)
	}
	return p.first + int64(i)
}

// write extends the inventory of a CA, and replaces the CRL. No other process may use the CA.
func (p past) write(dir string) error {
	now := time.Now().UTC().Truncate(time.Second)
	const layout = "2006-01-02T15:04:05UTC"
	start, end := now.Add(-ca.Backdate).Format(layout), now.Add(ca.DefaultTTL).Format(layout)
	inventory, err := os.ReadFile(filepath.Join(dir, "inventory.txt"))
	if err != nil {
		return err
	}
	out := bytes.NewBuffer(inventory)
	var entries []x509.RevocationListEntry
	for i := range p.issued {
		serial := p.serial(i)
		fmt.Fprintf(out, "0x%04X %s %s /CN=%s\n", serial, start, end, certname(i))
		if i < p.revoked {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: now, ReasonCode: keyCompromise})
		}
	}
	crl, err := signCRL(dir, entries, now)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"inventory.txt": out.Bytes(), "ca_crl.pem": crl, "serial": fmt.Appendf(nil, "%04X", p.first+int64(p.issued)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func signCRL(dir string, entries []x509.RevocationListEntry, now time.Time) ([]byte, error) {
	der, err := readPEM(filepath.Join(dir, "ca_crt.pem"))
	if err != nil {
		return nil, err
	}
	issuer, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if der, err = readPEM(filepath.Join(dir, "ca_key.pem")); err != nil {
		return nil, err
	}
	var key crypto.Signer
	if key, err = x509.ParsePKCS1PrivateKey(der); err != nil {
		if key, err = x509.ParseECPrivateKey(der); err != nil {
			return nil, err
		}
	}
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(int64(len(entries))), ThisUpdate: now.Add(-time.Second), NextUpdate: now.Add(ca.DefaultTTL),
		RevokedCertificateEntries: entries,
	}, issuer, key)
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}), err
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM", path)
	}
	return block.Bytes, nil
}
