package directory_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
)

// stubborn is a Disk that can't remove one file.
type stubborn struct {
	durable.Disk
	path string
}

func (s stubborn) Remove(paths ...string) error {
	failed := map[string]error{}
	for _, path := range paths {
		if path == s.path {
			failed[path] = unix.EPERM
		} else if err := s.Disk.Remove(path); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return &durable.RemoveError{Paths: failed}
	}
	return nil
}

// TestOneFileHoldsBackNobodyElse: a file in signed/ that can't be read or removed
// costs the receipts of its own target, and is no reason to call the authority down.
func TestOneFileHoldsBackNobodyElse(t *testing.T) {
	for name, folder := range map[string]bool{"read": true, "removed": false} {
		t.Run(name, func(t *testing.T) {
			dir := create(t, directory.CreateOptions{Key: ca.ECP256})
			path := filepath.Join(dir, "signed", "bad.example.com.pem")
			a := open(t, dir, directory.Options{Disk: stubborn{durable.OS, path}})
			bad, good := target(sign(t, a, "bad.example.com")), target(sign(t, a, "good.example.com"))
			if folder {
				if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				receipts, err := a.Revoke(t.Context(), []ca.Target{bad, good, {Serial: "0A0B"}})
				refused, ok := errors.AsType[*ca.RefusedError](err)
				if !ok || errors.Is(refused.Targets[0], node.ErrUnavailable) {
					t.Fatalf("Revoke: %v", err)
				}
				for i, want := range []node.Serial{"", good.Serial, "0A0B"} {
					if receipts[i].Serial != want || (refused.Targets[i] == nil) != (want != "") {
						t.Errorf("target %d: %+v, %v", i, receipts[i], refused.Targets[i])
					}
				}
			}
			ownCRL(t, dir).expect(1, bad.Serial, good.Serial, "0A0B")
			if _, err := a.Revoke(t.Context(), []ca.Target{bad}); !errors.Is(err, node.ErrUnavailable) {
				t.Errorf("Revoke where all fail: %v, want ErrUnavailable", err)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if got := revoke(t, a, bad)[0].CRLNumber; got != "1" {
				t.Errorf("CRL number %s, want 1", got)
			}
		})
	}
}
