package directory_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

// TestReasons: the entry has the reason asked for, no reason where that is
// unspecified, Puppet's where none was asked for, and keeps it.
func TestReasons(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	a := open(t, dir, directory.Options{})
	want := map[node.Serial]int{}
	var targets []ca.Target
	for _, r := range append(node.Reasons(), "") {
		serial := a.NewSerial()
		targets = append(targets, ca.Target{Serial: serial, Reason: r}, ca.Target{Serial: serial, Reason: node.CACompromise})
		want[serial], _ = r.Code()
	}
	revoke(t, a, targets...)
	revoke(t, a, ca.Target{Serial: targets[0].Serial, Reason: node.Superseded})
	crl := readCRLs(t, filepath.Join(dir, "ca_crl.pem"))[0]
	if len(crl.RevokedCertificateEntries) != len(want) {
		t.Errorf("%d entries, want %d", len(crl.RevokedCertificateEntries), len(want))
	}
	for _, e := range crl.RevokedCertificateEntries {
		code := want[node.SerialOf(e.SerialNumber)]
		if e.ReasonCode != code || (len(e.Extensions) > 0) != (code != 0) {
			t.Errorf("%d has reason %d and %d extensions, want reason %d", e.SerialNumber, e.ReasonCode, len(e.Extensions), code)
		}
	}
	_, err := a.Revoke(t.Context(), []ca.Target{{Serial: a.NewSerial(), Reason: "certificateHold"}})
	if !errors.Is(err, node.ErrInvalid) || errors.Is(err, node.ErrUnavailable) {
		t.Errorf("certificateHold: %v, want node.ErrInvalid", err)
	}
}
