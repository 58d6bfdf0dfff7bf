package rpc

import (
	"testing"

	"github.com/espm-project/espm/internal/ca"
)

// TestGrowth: a CRL's header and signature don't grow, however few its entries are.
func TestGrowth(t *testing.T) {
	for _, test := range []struct {
		crl  ca.CRLStatus
		want int64
	}{
		{ca.CRLStatus{}, 0},
		{ca.CRLStatus{Entries: 10, EntryBytes: 500}, 0},
		{ca.CRLStatus{Entries: 7, EntryBytes: 350, Recent: 7}, 50},
		{ca.CRLStatus{Entries: 7000, EntryBytes: 350_000, Recent: 14}, 100},
	} {
		if got := growth(test.crl); got != test.want {
			t.Errorf("%+v grows by %d bytes a day, want %d", test.crl, got, test.want)
		}
	}
}
