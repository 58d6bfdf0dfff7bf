package snapshot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/espm-project/espm/internal/backup"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/site"
	"github.com/espm-project/espm/internal/store/bolt"
)

const tokenURI = "pkcs11:token=a;object=b?module-path=/nowhere.so&pin-source=/nowhere"

// A backup says which private keys it holds, and that it has the CA's only where it has.
func TestBackupNamesKeys(t *testing.T) {
	for what, c := range map[string]struct {
		uri    string
		asked  bool
		absent string
		signs  bool
		want   []string
	}{
		"not asked for":         {want: nil},
		"asked for":             {asked: true, signs: true, want: []string{"ca/ca_key.pem", "ca/root_key.pem"}},
		"in a token":            {uri: tokenURI, asked: true, absent: "ca_key.pem", want: []string{"ca/root_key.pem"}},
		"in a token, not asked": {uri: tokenURI, absent: "ca_key.pem"},
		"a root's is not there": {asked: true, absent: "root_key.pem", signs: true, want: []string{"ca/ca_key.pem"}},
	} {
		dir, conf := trial(t)
		ca := filepath.Join(dir, "ca")
		key, err := os.ReadFile(filepath.Join(ca, "ca_key.pem"))
		if err := errors.Join(err, os.WriteFile(filepath.Join(ca, rootKey), key, 0o600)); err != nil {
			t.Fatal(err)
		}
		if c.absent != "" {
			if err := os.Remove(filepath.Join(ca, c.absent)); err != nil {
				t.Fatal(err)
			}
		}
		conf.Authority.Directory.Key = c.uri
		engine, err := bolt.Open(conf.Store.Path, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		err = NewMaker(conf, engine).Snapshot(node.AsSelf(t.Context()), &b, c.asked)
		if err := errors.Join(err, engine.Close()); err != nil {
			t.Fatal(err)
		}
		done, err := Restore(t.Context(), conf, &b, true)
		m := done.Manifest
		if err != nil || m.PrivateKey != c.signs || m.KeyInToken != (c.uri != "") || !slices.Equal(m.Keys, c.want) {
			t.Errorf("%s: %+v, %v", what, m, err)
		}
		for _, name := range []string{backup.CAKeyName, backup.CAFolder + rootKey} {
			if slices.Contains(m.Keys, name) != slices.ContainsFunc(m.Files, func(f backup.File) bool { return f.Name == name }) {
				t.Errorf("%s: %s: told of in %q, and is in %v", what, name, m.Keys, m.Files)
			}
		}
		if left := c.absent != rootKey && !slices.Contains(m.Keys, "ca/root_key.pem"); left != (done.RootKey != "") || left && !site.Exists(done.RootKey) {
			t.Errorf("%s: the root's key is in %q", what, done.RootKey)
		}
	}
}

// Where a token has the key a file of one is neither looked at nor taken over.
func TestRestoreKeyInToken(t *testing.T) {
	dir, conf := trial(t)
	whole := made(t, dir)
	conf.Authority.Directory.Key = tokenURI
	file := filepath.Join(dir, "ca", "ca_key.pem")
	if err := os.WriteFile(file, []byte("what was left of another"), 0o600); err != nil {
		t.Fatal(err)
	}
	done, err := Restore(t.Context(), conf, bytes.NewReader(whole), true)
	if err != nil || !done.InToken || done.Held.Key || site.Exists(file) {
		t.Errorf("%+v, %v; the file: %v", done, err, site.Exists(file))
	}
}
