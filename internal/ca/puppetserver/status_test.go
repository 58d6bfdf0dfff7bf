package puppetserver

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// TestStatus: what the server hands out is what its folder holds.
func TestStatus(t *testing.T) {
	s := newStub(t)
	a := s.open(t)
	_, err := s.directory.Revoke(t.Context(), []ca.Target{{Serial: "0ABC"}})
	check(t, err)
	want, err := s.directory.Status(t.Context())
	check(t, err)
	got, err := a.Status(t.Context())
	check(t, err)
	if got.CRL != want.CRL || got.CRL.Entries != 1 || got.Subject != want.Subject || !got.NotAfter.Equal(want.NotAfter) || got.Bytes != want.Bytes {
		t.Errorf("status %+v, want %+v", got, want)
	}
	if len(got.Files) != 0 || len(got.Foreign) != 0 {
		t.Errorf("status %+v, want no files and no foreign CRLs", got)
	}
}

// alsoGives has the stub hand out more beside its CRL, before and after it.
func (s *stub) alsoGives(before, after []byte) {
	s.front(func(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
		if r.URL.Path == crlPath {
			_, _ = w.Write(before)
			defer func() { _, _ = w.Write(after) }()
		}
		next(w, r)
	})
}

// foreignCRL is another CA's, in PEM.
func foreignCRL(t *testing.T, entries int) []byte {
	t.Helper()
	key, err := ca.GenerateKey(ca.ECP256)
	check(t, err)
	issuer := &x509.Certificate{RawSubject: []byte{0x30, 0}, SubjectKeyId: []byte("1"), KeyUsage: x509.KeyUsageCRLSign}
	crl := &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for i := range entries {
		crl.RevokedCertificateEntries = append(crl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(int64(i + 1)), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, crl, issuer, key)
	check(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// Brief, which is called every few seconds, costs the same however long the CRLs.
func TestBriefReadsTheCRLsOnce(t *testing.T) {
	const entries = 2000
	s := newStub(t)
	crl := foreignCRL(t, entries)
	s.alsoGives(crl, crl)
	a := s.open(t)
	got, err := a.Brief(t.Context())
	check(t, err)
	if len(got.Foreign) != 2 || got.Foreign[0].Entries != entries || got.Foreign[1].Number != "7" || got.CRL.Entries != 0 {
		t.Errorf("status %+v", got)
	}
	allocs := testing.AllocsPerRun(5, func() {
		if _, err := a.Brief(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if allocs > entries/10 {
		t.Errorf("%v allocations", allocs)
	}
}

// A CRL of another CA that can't be read is reported, and does not stop revocations.
func TestAForeignCRLThatCannotBeRead(t *testing.T) {
	s := newStub(t)
	s.alsoGives(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("garbage")}), nil)
	a := s.open(t)
	if _, err := a.Brief(t.Context()); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("status: %v", err)
	}
	_, err := s.directory.Revoke(t.Context(), []ca.Target{{Serial: "0ABC"}})
	check(t, err)
	s.set(func() { s.mtime = s.now })
	if _, listed, err := a.listed(t.Context(), "0ABC"); err != nil || !listed["0ABC"] {
		t.Errorf("listed %v, %v", listed, err)
	}
}
