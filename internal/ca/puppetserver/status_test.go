package puppetserver

import (
	"testing"

	"github.com/espm-project/espm/internal/ca"
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
