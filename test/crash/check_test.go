package crash

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// settled waits until no intent is open and no revocation pending.
func settled(t *testing.T, s *store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(node.AsSelf(t.Context()), 30*time.Second)
	defer cancel()
	for poll := time.NewTicker(5 * time.Millisecond); !quiet(ctx, t, s); {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatal("the store does not settle")
		}
	}
}

func quiet(ctx context.Context, t *testing.T, s *store.Store) bool {
	t.Helper()
	for range s.Intents(ctx) {
		return false
	}
	pending, err := s.Pending(ctx, "", 1)
	if err != nil {
		t.Fatal(err)
	}
	return len(pending) == 0
}

// crlState is the published CRL, which agents and Puppet Server read.
type crlState struct {
	number  *big.Int
	revoked map[node.Serial]bool
}

// readCRL reads the CRL. It checks it with openssl, and that each serial is listed once.
func readCRL(t *testing.T, path string) crlState {
	t.Helper()
	if out, err := exec.Command("openssl", "crl", "-in", path, "-noout", "-text").CombinedOutput(); err != nil {
		t.Fatalf("openssl crl %s: %v\n%s", path, err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	state := crlState{crl.Number, map[node.Serial]bool{}}
	for _, e := range crl.RevokedCertificateEntries {
		serial := node.SerialOf(e.SerialNumber)
		if state.revoked[serial] {
			t.Errorf("serial %s stands twice in %s", serial, path)
		}
		state.revoked[serial] = true
	}
	return state
}

// inventory returns all serials ever issued, with their names.
func inventory(t *testing.T, dir string) map[node.Serial]string {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "ca", "inventory.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	issued := map[node.Serial]string{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		validity, name, named := strings.Cut(sc.Text(), " /CN=")
		fields := strings.Fields(validity)
		if len(fields) != 3 || !named {
			t.Fatalf("inventory line %q", sc.Text())
		}
		serial := node.Serial(strings.TrimPrefix(fields[0], "0x"))
		if _, twice := issued[serial]; twice {
			t.Errorf("serial %s was issued twice", serial)
		}
		issued[serial] = name
	}
	return issued
}

// checkOrphans checks that each issued certificate is revoked or belongs to a live
// registration. It also checks the owners' lists, and that openssl accepts the certificates of live registrations.
func checkOrphans(t *testing.T, dir string, s *store.Store) crlState {
	t.Helper()
	checkOwner(t, s)
	crl := readCRL(t, filepath.Join(dir, "ca", "ca_crl.pem"))
	published := readCRL(t, filepath.Join(dir, "crl.pem"))
	if crl.number.Cmp(published.number) != 0 {
		t.Errorf("CRL %v is published as %v", crl.number, published.number)
	}
	for serial, name := range inventory(t, dir) {
		n, err := s.Node(node.AsSelf(t.Context()), node.Certname(name))
		held := err == nil && n.Newest() == serial
		switch {
		case held && crl.revoked[serial]:
			t.Errorf("%s of live node %q is revoked", serial, name)
		case !held && !crl.revoked[serial] && !isCA(t, dir, serial):
			t.Errorf("%s of %q is alive and nobody holds it", serial, name)
		}
	}
	return crl
}

// checkOwner checks that the lists of each owner agree with the lists of all nodes. They would differ if a
// crash wrote records without their index.
func checkOwner(t *testing.T, s *store.Store) {
	t.Helper()
	const everything = 1_000_000
	ctx := node.AsSelf(t.Context())
	nodes, err := s.Nodes(ctx, store.NodeFilter{}, "", everything)
	if err != nil {
		t.Fatal(err)
	}
	owned(t, "nodes", nodes.Items, func(n node.Node) string { return n.Owner }, func(owner string) (store.Page[node.Node], error) {
		return s.Nodes(ctx, store.NodeFilter{Owner: owner}, "", everything)
	})
	certs, err := s.Certificates(ctx, "", everything)
	if err != nil {
		t.Fatal(err)
	}
	owned(t, "certificates", certs.Items, func(c node.Certificate) string { return c.Owner }, func(owner string) (store.Page[node.Certificate], error) {
		return s.CertificatesOwned(ctx, owner, "", "", everything)
	})
	revs, err := s.Revocations(ctx, store.RevocationFilter{}, "", everything)
	if err != nil {
		t.Fatal(err)
	}
	owned(t, "revocations", revs.Items, func(r node.Revocation) string { return r.Owner }, func(owner string) (store.Page[node.Revocation], error) {
		return s.Revocations(ctx, store.RevocationFilter{Owner: owner}, "", everything)
	})
}

func owned[T any](t *testing.T, what string, all []T, ownerOf func(T) string, list func(owner string) (store.Page[T], error)) {
	t.Helper()
	counts := map[string]int{}
	for _, item := range all {
		counts[ownerOf(item)]++
	}
	for owner, count := range counts {
		page, err := list(owner)
		if err != nil || owner == "" || len(page.Items) != count {
			t.Errorf("%d %s of %q, %d on his list, %v", count, what, owner, len(page.Items), err)
		}
	}
}

func isCA(t *testing.T, dir string, serial node.Serial) bool {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "ca", "ca_crt.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && node.SerialOf(cert.SerialNumber) == serial {
			return true
		}
	}
	return false
}

// verify asks openssl whether a certificate is valid, with the CRL.
func verify(t *testing.T, dir string, certPEM []byte) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(path, certPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("openssl", "verify", "-crl_check", "-CAfile", filepath.Join(dir, "ca", "ca_crt.pem"),
		"-CRLfile", filepath.Join(dir, "crl.pem"), path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("openssl verify: %w: %s", err, out)
	}
	return nil
}
