package puppetserver

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/oldca"
)

// A root that crypto/x509 can't read, with a CRL of version 1, is no obstacle: the chain and the CRLs are handed on as
// they are, and a revocation is found.
func TestOldRoots(t *testing.T) {
	for _, root := range oldca.Roots() {
		t.Run(string(root), func(t *testing.T) {
			s := newStubOf(t, oldca.Make(t, root))
			a := s.open(t)
			_, err := s.directory.Revoke(t.Context(), []ca.Target{{Serial: "0ABC"}})
			check(t, err)
			want, err := s.directory.Trust(t.Context())
			check(t, err)
			if got, err := a.Trust(t.Context()); err != nil || string(got.CRLsPEM) != string(want.CRLsPEM) || string(got.CertificatesPEM) != string(want.CertificatesPEM) {
				t.Errorf("chain and CRLs are not those of the server: %v", err)
			}
			status, err := a.Status(t.Context())
			if err != nil || len(status.Foreign) != 1 || status.Foreign[0].Outside || status.Foreign[0].Entries != 1 || status.CRL.Entries != 1 {
				t.Errorf("status %+v, %v", status, err)
			}
			if number, err := a.Listed(t.Context(), "0ABC"); err != nil || number == "" {
				t.Errorf("listed on CRL %q, %v", number, err)
			}
			if cert, err := a.Check(t.Context(), ca.Request{Certname: "new.test"}); err != nil || cert != nil {
				t.Errorf("Check of a free name: %v, %v", cert, err)
			}
		})
	}
}

// A certificate that can't be read takes its name. It is not the one that a Sign left, so Find has a final answer.
func TestUnreadableLeaf(t *testing.T) {
	dir := oldca.Make(t, oldca.SHA1)
	oldca.Leaf(t, dir, "curve.test", oldca.BrainpoolKey(), "-set_serial", "291")
	leaf, err := os.ReadFile(filepath.Join(dir, "signed", "curve.test.pem"))
	check(t, err)
	s := newStubOf(t, dir)
	s.names = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == apiPath+"certificate/curve.test" {
			_, _ = w.Write(leaf)
			return
		}
		http.NotFound(w, r)
	}
	a := s.open(t)
	if cert, err := a.Check(t.Context(), ca.Request{Certname: "curve.test"}); cert != nil || !errors.Is(err, node.ErrForeignCertificate) {
		t.Errorf("Check: %v, %v", cert, err)
	}
	if found, err := a.Find(t.Context(), ca.Query{Certname: "curve.test", KeyHash: "ab", Since: s.clock().Add(-1e15)}); err != nil || found.Issued {
		t.Errorf("Find: %+v, %v", found, err)
	}
}
