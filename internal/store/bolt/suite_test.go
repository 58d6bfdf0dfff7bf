package bolt

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/storetest"
)

func TestEngine(t *testing.T) {
	storetest.Run(t, storetest.Subject{Open: openIn, History: storetest.MinHistory})
}

func openIn(t *testing.T, dir string) store.Engine {
	return openAt(t, filepath.Join(dir, "espm.db"))
}

func openAt(t testing.TB, path string) *Engine {
	t.Helper()
	e, err := Open(path, Options{History: storetest.MinHistory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func put(key, value string) store.Batch {
	return store.Batch{Puts: []store.Put{{Key: key, Value: []byte(value)}}}
}

func mustCommit(t testing.TB, e *Engine, b store.Batch) int64 {
	t.Helper()
	revision, err := e.Commit(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func expect(t testing.TB, r store.Reader, key, want string, revision int64) {
	t.Helper()
	got, err := r.Get(t.Context(), key)
	if err != nil || string(got.Value) != want || got.Revision != revision {
		t.Fatalf("get %q: got %.40q@%d, %v, want %.40q@%d", key, got.Value, got.Revision, err, want, revision)
	}
}

func expectAbsent(t testing.TB, r store.Reader, key string) {
	t.Helper()
	if got, err := r.Get(t.Context(), key); !errors.Is(err, store.ErrNoKey) {
		t.Fatalf("get %q: got %.40q@%d, %v, want ErrNoKey", key, got.Value, got.Revision, err)
	}
}

// checkFile closes nothing: it runs bbolt's own check on an open engine.
func checkFile(t testing.TB, e *Engine) {
	t.Helper()
	// A write transaction, since the check may not run beside one.
	tx, err := e.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for err := range tx.Check() {
		t.Error("bbolt check:", err)
	}
}

// transactions is how many write transactions the file has seen.
func transactions(t testing.TB, e *Engine) (n int) {
	t.Helper()
	if err := e.db.View(func(tx *bbolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(commitUntilKilled(path))
	}
	os.Exit(m.Run())
}

// shortest is a timeout of Open that tries the lock once.
const shortest = time.Nanosecond
