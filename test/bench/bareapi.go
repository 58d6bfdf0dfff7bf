package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// ttl is the lifetime of the benchmarks' certificates, in seconds.
const ttl = 24 * 60 * 60

// bareAPI calls Puppet Server's API directly, without espm.
type bareAPI struct {
	url    string
	client *http.Client
}

func (s *puppetServer) bareAPI(callers int) (bareAPI, error) {
	client, err := s.client(callers)
	return bareAPI{s.url() + "/puppet-ca/v1/", client}, err
}

// presign makes a key, submits a CSR, signs it and downloads the certificate.
func (b bareAPI) presign(ctx context.Context, name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if _, err := b.call(ctx, http.MethodPut, "certificate_request/"+name, "text/plain", csr); err != nil {
		return err
	}
	if err := b.set(ctx, name, fmt.Sprintf(`{"desired_state":"signed","cert_ttl":%d}`, ttl)); err != nil {
		return err
	}
	text, err := b.call(ctx, http.MethodGet, "certificate/"+name, "", nil)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return fmt.Errorf("the certificate of %s is no PEM", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err == nil && !key.PublicKey.Equal(cert.PublicKey) {
		err = errors.New("another key")
	}
	return err
}

func (b bareAPI) revoke(ctx context.Context, name string) error {
	return b.set(ctx, name, `{"desired_state":"revoked"}`)
}

func (b bareAPI) set(ctx context.Context, name, status string) error {
	_, err := b.call(ctx, http.MethodPut, "certificate_status/"+name, "application/json", []byte(status))
	return err
}

func (b bareAPI) call(ctx context.Context, method, path, kind string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, b.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s %.200s", method, path, resp.Status, strings.TrimSpace(string(text)))
	}
	return text, err
}
