package snapshot

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/test/testbed"
)

// A backup has what the links of an old site name: the CA folder, single files and signed/. A restore leaves the links
// to the CA folder and to the store where they are, and replaces what they name.
func TestLinksOfAnOldSite(t *testing.T) {
	dir, conf := trial(t)
	ca, elsewhere := conf.Authority.Directory.Path, t.TempDir()
	move := func(path, name string) {
		t.Helper()
		to := filepath.Join(elsewhere, name)
		if err := errors.Join(os.Rename(path, to), os.Symlink(to, path)); err != nil {
			t.Fatal(err)
		}
	}
	leaf := filepath.Join(ca, "signed", "web1.test.pem")
	if err := errors.Join(os.MkdirAll(filepath.Dir(leaf), 0o755), os.WriteFile(leaf, []byte("a certificate"), 0o644), os.Symlink("nowhere", filepath.Join(ca, "lost"))); err != nil {
		t.Fatal(err)
	}
	want := testbed.Contents(t, ca)
	move(filepath.Join(ca, "signed"), "signed")
	for _, name := range []string{"ca_crt.pem", "ca_key.pem", "ca_crl.pem", "inventory.txt"} {
		move(filepath.Join(ca, name), name)
	}
	if err := os.Symlink("..", filepath.Join(elsewhere, "signed", "loop")); err != nil {
		t.Fatal(err)
	}
	move(ca, "ca")
	move(conf.Store.Path, "espm.db")
	engine, err := bolt.Open(conf.Store.Path, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	err = NewMaker(conf, engine).Snapshot(node.AsSelf(t.Context()), &b, true)
	if err := errors.Join(err, engine.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), conf, &b, true); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{ca, conf.Store.Path} {
		if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s is no link any more: %v", link, err)
		}
	}
	got := map[string]string{}
	for path, data := range testbed.Contents(t, filepath.Join(elsewhere, "ca")) {
		rel, _ := filepath.Rel(filepath.Join(elsewhere, "ca"), path)
		got[rel] = string(data)
	}
	had := map[string]string{}
	for path, data := range want {
		if rel, _ := filepath.Rel(ca, path); rel != "espm.lock" && rel != "lost" {
			had[rel] = string(data)
		}
	}
	delete(got, "espm.lock")
	if !maps.Equal(got, had) {
		t.Errorf("restored %d files, want %d, in %s", len(got), len(had), dir)
		for name := range had {
			if got[name] != had[name] {
				t.Errorf("%s is not what it was", name)
			}
		}
	}
}
