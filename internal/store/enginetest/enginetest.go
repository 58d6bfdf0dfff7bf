// Package enginetest runs the tests of a package over each store engine.
package enginetest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/internal/store/memory"
)

// likeEtcd has Open return the engine in memory.
var likeEtcd bool

// Main runs the tests over bolt, then over the engine in memory, which behaves like etcd, and exits. It is called by TestMain.
// A fuzz target or a benchmark runs over bolt alone.
func Main(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if code == 0 && given("test.fuzz") == "" && given("test.fuzzworker") != "true" && given("test.bench") == "" && given("test.list") == "" {
		fmt.Println("enginetest: the same tests over the engine that behaves like etcd")
		likeEtcd = true
		code = m.Run()
	}
	os.Exit(code)
}

func given(name string) string {
	if f := flag.Lookup(name); f != nil {
		return f.Value.String()
	}
	return ""
}

// Open returns an engine without records, which is closed with the test. Committed is called
// after each group of commits, before their callers are told; nil: nobody.
func Open(t testing.TB, committed func(batches int, took time.Duration, err error)) store.Engine {
	t.Helper()
	var e store.Engine
	if likeEtcd {
		e = memory.Open(memory.NewDisk(), memory.Options{Committed: committed, LoseEvery: 7})
	} else {
		var err error
		if e, err = bolt.Open(filepath.Join(t.TempDir(), "espm.db"), bolt.Options{Committed: committed}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { e.Close() })
	return e
}
