package directory_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/durable"
)

// largeCA returns a CA directory with an RSA-4096 key and a CRL of n entries.
func largeCA(b *testing.B, n int) string {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "ca")
	if err := directory.Create(dir, directory.CreateOptions{Host: "puppet.example.com"}); err != nil {
		b.Fatal(err)
	}
	a, err := directory.Open(dir, directory.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := a.Revoke(b.Context(), serials(a, n)); err != nil {
		b.Fatal(err)
	}
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
	return dir
}

func serials(a *directory.Authority, n int) []ca.Target {
	targets := make([]ca.Target, n)
	for i := range targets {
		targets[i].Serial = a.NewSerial()
	}
	return targets
}

func openLarge(b *testing.B, dir string) *directory.Authority {
	b.Helper()
	a, err := directory.Open(dir, directory.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = a.Close() })
	return a
}

// BenchmarkRevoke revokes 20 certificates at a time. In turns with it the bare
// work is done: the SHA-256 of as many bytes as the CRL has, one RSA-4096 signature, one
// durable write of those bytes. x-bare is how many times that a Revoke takes.
func BenchmarkRevoke(b *testing.B) {
	for _, n := range []int{0, 100_000, 200_000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			a := openLarge(b, largeCA(b, n))
			key, err := rsa.GenerateKey(rand.Reader, 4096)
			if err != nil {
				b.Fatal(err)
			}
			path := filepath.Join(b.TempDir(), "bare")
			var ours, bare time.Duration
			for b.Loop() {
				trust, err := a.Trust(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				block, _ := pem.Decode(trust.CRLsPEM)
				targets := serials(a, 20)
				bare += clock(b, func() error {
					digest := sha256.Sum256(block.Bytes)
					if _, err := key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
						return err
					}
					return durable.OS.WriteFile(path, block.Bytes, 0o644)
				})
				ours += clock(b, func() error {
					_, err := a.Revoke(b.Context(), targets)
					return err
				})
			}
			b.ReportMetric(float64(ours)/float64(bare), "x-bare")
			b.ReportMetric(float64(ours.Microseconds())/1000/float64(b.N), "ms/revoke")
			b.ReportMetric(float64(bare.Microseconds())/1000/float64(b.N), "ms/bare")
		})
	}
}

func clock(b *testing.B, do func() error) time.Duration {
	b.Helper()
	begin := time.Now()
	if err := do(); err != nil {
		b.Fatal(err)
	}
	return time.Since(begin)
}

// BenchmarkOpen starts on 100,000 CRL entries and 500,000 inventory lines, with
// the first look for what a crash cut short, and the first round of care. In turns with
// it, the bare work: both files read, the CRL parsed and verified by x509.
func BenchmarkOpen(b *testing.B) {
	dir := largeCA(b, 100_000)
	inventory := filepath.Join(dir, "inventory.txt")
	var lines strings.Builder
	for i := range 500_000 {
		fmt.Fprintf(&lines, "0x%016X 2026-11-22T12:00:00UTC 2031-11-22T12:00:00UTC /CN=node%06d.example.com\n", uint64(i)<<40|1<<62, i)
	}
	if err := os.WriteFile(inventory, []byte(lines.String()), 0o644); err != nil {
		b.Fatal(err)
	}
	cert := parseFirst(b, filepath.Join(dir, "ca_crt.pem"))
	var opened, asked, cared, bare, held float64
	for b.Loop() {
		bare += clock(b, func() error { return readBare(dir, cert) }).Seconds()
		before := heap()
		var a *directory.Authority
		opened += clock(b, func() (err error) { a, err = directory.Open(dir, directory.Options{}); return err }).Seconds()
		held += float64(heap() - before)
		asked += clock(b, func() error {
			for range 64 {
				if _, err := a.Find(b.Context(), ca.Query{Certname: "cut.example.com", Serial: a.NewSerial()}); err != nil {
					return err
				}
			}
			return nil
		}).Seconds()
		cared += clock(b, func() error { return a.Care(b.Context()) }).Seconds()
		if err := a.Close(); err != nil {
			b.Fatal(err)
		}
	}
	n := float64(b.N)
	b.ReportMetric(opened/bare, "x-bare")
	b.ReportMetric(1000*opened/n, "ms/open")
	b.ReportMetric(1000*asked/n, "ms/64-finds")
	b.ReportMetric(1000*cared/n, "ms/first-care")
	b.ReportMetric(1000*bare/n, "ms/bare")
	b.ReportMetric(held/n/100_000, "B/entry")
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func parseFirst(b *testing.B, path string) *x509.Certificate {
	b.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		b.Fatal(err)
	}
	return cert
}

func readBare(dir string, issuer *x509.Certificate) error {
	if _, err := os.ReadFile(filepath.Join(dir, "inventory.txt")); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, "ca_crl.pem"))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return err
	}
	return crl.CheckSignatureFrom(issuer)
}
