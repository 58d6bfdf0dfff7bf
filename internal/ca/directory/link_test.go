package directory_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/need"
)

// TestLinksStay: ca_crl.pem and its copies may be symbolic links. They stay links, and the file that they name, which
// Puppet Server may read under its own path, has each new CRL when the receipt is there.
func TestLinksStay(t *testing.T) {
	dir, elsewhere := create(t, directory.CreateOptions{Key: ca.ECP256}), t.TempDir()
	own, hostcrl := filepath.Join(elsewhere, "own_crl.pem"), filepath.Join(elsewhere, "crl.pem")
	copied, toOwn := filepath.Join(t.TempDir(), "copy.pem"), filepath.Join(t.TempDir(), "hostcrl.pem")
	if err := errors.Join(
		os.Rename(filepath.Join(dir, "ca_crl.pem"), own), os.Symlink(own, filepath.Join(dir, "ca_crl.pem")),
		os.Symlink(hostcrl, copied), os.Symlink(filepath.Join(dir, "ca_crl.pem"), toOwn),
	); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(elsewhere, ".own_crl.pem123")
	write(t, stale, "half")
	a := open(t, dir, directory.Options{Publish: []string{copied, toOwn}})
	if exists(t, stale) {
		t.Error("a temporary file beside the link's end still stands")
	}
	check := func() {
		t.Helper()
		for path, want := range map[string]string{filepath.Join(dir, "ca_crl.pem"): own, copied: hostcrl, toOwn: filepath.Join(dir, "ca_crl.pem")} {
			if got, err := os.Readlink(path); err != nil || got != want {
				t.Errorf("%s leads to %q, %v; want %s", path, got, err, want)
			}
		}
		trust, err := a.Trust(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{own, hostcrl, toOwn} {
			if read(t, path) != string(trust.CRLsPEM) {
				t.Errorf("%s has not the CRL that was published", path)
			}
		}
	}
	check()
	receipts := revoke(t, a, target(sign(t, a, "web.example.com")))
	check()
	for _, path := range receipts[0].PublishedTo {
		if read(t, path) != read(t, own) {
			t.Errorf("the receipt names %s", path)
		}
	}
	write(t, hostcrl, "changed by another program")
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	if err := a.Care(t.Context()); err != nil {
		t.Fatal(err)
	}
	check()
	// A link that another program makes to name another file leads to the CRL too.
	moved := filepath.Join(elsewhere, "moved.pem")
	if err := errors.Join(os.Remove(copied), os.Symlink(moved, copied)); err != nil {
		t.Fatal(err)
	}
	hostcrl = moved
	revoke(t, a, ca.Target{Serial: "0A0B"})
	check()
}

// TestLinkOfAStranger: a link that another user made is neither followed nor replaced. There is no receipt, and the
// error says what to do.
func TestLinkOfAStranger(t *testing.T) {
	need.Root(t, "give a link away")
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	precious, copied := filepath.Join(t.TempDir(), "precious"), filepath.Join(t.TempDir(), "crl.pem")
	write(t, precious, "keep me")
	if err := errors.Join(os.Symlink(precious, copied), os.Lchown(copied, 12345, 23456)); err != nil {
		t.Fatal(err)
	}
	a := open(t, dir, directory.Options{Publish: []string{copied}})
	receipts, err := a.Revoke(t.Context(), []ca.Target{{Serial: "0A0B"}})
	if len(receipts) > 0 || !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "chown -h root "+copied) {
		t.Errorf("Revoke: %+v, %v", receipts, err)
	}
	if read(t, precious) != "keep me" {
		t.Error("the link was followed")
	}
	if err := os.Lchown(copied, 0, 0); err != nil {
		t.Fatal(err)
	}
	revoke(t, a, ca.Target{Serial: "0A0B"})
	if read(t, precious) != read(t, dir, "ca_crl.pem") {
		t.Error("root's link was not followed")
	}
}
