package daemon

import (
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/memory"
)

// A certificate whose revocation is ordered is refused before the CA knows of the order.
func TestOrderedIsRefused(t *testing.T) {
	s, err := store.New(t.Context(), memory.Open(memory.NewDisk(), memory.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	c := store.NewChange()
	c.Unaudited()
	c.PutRevocation(node.Revocation{ID: "0190a000-0000-7000-8000-000000000001", Serial: node.SerialOf(big.NewInt(10)), Certname: "admin.test", CreatedAt: time.Now()})
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	err = refused(s.Ordered, nil)(&x509.Certificate{SerialNumber: big.NewInt(10)}, nil)
	if err == nil || !strings.Contains(err.Error(), "its revocation is ordered") {
		t.Errorf("got %v", err)
	}
}
