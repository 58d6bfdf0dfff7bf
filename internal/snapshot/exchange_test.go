package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/espm-project/espm/internal/backup"
	"github.com/espm-project/espm/internal/site"
	"github.com/espm-project/espm/test/testbed"
)

// Wherever a restore ends that replaces what stands, another one succeeds. What stood is kept under
// its one name, and nothing else under such a name that never stood.
func TestRestoreCutShort(t *testing.T) {
	for _, c := range []struct {
		at       int    // the rename that did not come
		what     string // of CA and store, in turn
		cas, dbs int    // kept after the second restore
	}{
		{1, "before anything", 1, 1},
		{2, "CA: before the exchange", 1, 1},
		{3, "CA: exchanged, what stood not named", 2, 1},
		{4, "the CA is in its place, the store is not", 2, 1},
		{5, "store: before the exchange", 2, 1},
		{6, "store: exchanged, what stood not named", 2, 2},
	} {
		for _, killed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, killed %v", c.what, killed), func(t *testing.T) {
				dir, conf := trial(t)
				whole := made(t, dir)
				old := filepath.Join(conf.Authority.Directory.Path, "old.txt")
				stood := append(testbed.Contents(t, dir)[conf.Store.Path], make([]byte, 4096)...) // bbolt does not mind
				if err := errors.Join(os.WriteFile(old, nil, 0o600), os.WriteFile(conf.Store.Path, stood, 0o640)); err != nil {
					t.Fatal(err)
				}
				cutShort(t, newRestore(conf), whole, c.at, killed)
				if left := restoring(t, conf.Store.Path, conf.Authority.Directory.Path); !killed && len(left) > 0 {
					t.Errorf("a failure left %q", left)
				}

				done, err := Restore(t.Context(), conf, bytes.NewReader(whole), true)
				if err != nil || !done.Held.Key {
					t.Fatalf("%+v, %v", done, err)
				}
				if left := restoring(t, conf.Store.Path, conf.Authority.Directory.Path); len(left) > 0 || site.Exists(old) {
					t.Errorf("left: %q", left)
				}
				cas, _ := beside(conf.Authority.Directory.Path, before)
				dbs, _ := beside(conf.Store.Path, before)
				if len(cas) != c.cas || len(dbs) != c.dbs {
					t.Errorf("kept %q and %q, want %d and %d", cas, dbs, c.cas, c.dbs)
				}
				found := 0
				for _, path := range cas {
					if site.Exists(filepath.Join(path, "old.txt")) && site.Exists(filepath.Join(path, "ca_key.pem")) {
						found++
					}
				}
				for _, path := range dbs {
					if data, err := os.ReadFile(path); err == nil && bytes.Equal(data, stood) {
						found++
					}
				}
				if found != 2 {
					t.Errorf("of the CA and the store that stood, %d are in %q and %q", found, cas, dbs)
				}
			})
		}
	}
}

// cutShort does the part of a restore up to a rename, which fails, or is where it is killed: then nothing is cleaned up.
func cutShort(t *testing.T, r *restore, whole []byte, at int, killed bool) {
	t.Helper()
	var done Restored
	err := r.lock(true)
	if err == nil {
		done.Manifest, err = backup.Read(bytes.NewReader(whole), r.stage)
	}
	if err == nil {
		err = r.check(context.Background(), &done)
	}
	if err != nil {
		t.Fatal(err)
	}
	errCut, n := errors.New("cut short"), 0
	r.rename = func(from, to string, flags uint) error {
		if n++; n == at {
			return errCut
		}
		return rename(from, to, flags)
	}
	if err := r.switchOver(&done); !errors.Is(err, errCut) {
		t.Fatalf("after %d renames: %v", n, err)
	}
	end := r.close
	if killed {
		end = r.unlock // as the system does
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
}

// restoring is what a restore has on its way.
func restoring(t *testing.T, paths ...string) []string {
	t.Helper()
	var all []string
	for _, path := range paths {
		for _, prefix := range []string{path, filepath.Join(filepath.Dir(path), "."+filepath.Base(path))} {
			found, err := beside(prefix, staged)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, found...)
		}
	}
	return all
}

// A restore killed while it writes leaves most of a store under a hidden name; the next one removes it.
func TestRestoreKilledWhileStaging(t *testing.T) {
	dir, conf := trial(t)
	hidden := filepath.Join(dir, "."+filepath.Base(conf.Store.Path)+staged+"123456")
	if err := os.WriteFile(hidden, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), conf, bytes.NewReader(made(t, dir)), true); err != nil {
		t.Fatal(err)
	}
	if site.Exists(hidden) {
		t.Error("it stayed")
	}
}
