package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/store"
)

// mark is a step that marks records below node/, two in a batch: their values end in its name.
func mark(name string, e *unready) store.Step {
	return store.Step{Name: name, Batch: func(ctx context.Context, s *store.Store, after string) (b store.Batch, last string, err error) {
		records, _, err := e.List(ctx, "node/", after, 2)
		for _, r := range records {
			b.Guards = append(b.Guards, store.Guard{Key: r.Key, Revision: r.Revision})
			b.Puts = append(b.Puts, store.Put{Key: r.Key, Value: append(r.Value, name...)})
			last = r.Key
		}
		if hook := e.hook; hook != nil {
			hook(last)
		}
		return b, last, err
	}}
}

// old is a store of version 1 with five records.
func old(t *testing.T) *unready {
	e := newUnready(t)
	e.schema(t, `{"version":1}`)
	for i := range 5 {
		check(t, second(e.Engine.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: fmt.Sprintf("node/n%d", i), Value: []byte("v")}}})))
	}
	return e
}

func (u *unready) values(t *testing.T) (all []string) {
	t.Helper()
	records, _, err := u.List(t.Context(), "node/", "", 10)
	check(t, err)
	for _, r := range records {
		all = append(all, string(r.Value))
	}
	return all
}

func (u *unready) wantSchema(t *testing.T, want string) {
	t.Helper()
	rec, err := u.Get(t.Context(), "schema")
	check(t, err)
	if string(rec.Value) != want {
		t.Errorf("schema %s, want %s", rec.Value, want)
	}
}

// Steps run in order, each once for a record, and what was there before is kept first.
func TestMigrate(t *testing.T) {
	e := old(t)
	s := store.StoreOf(e)
	var kept []int
	versions := [][]store.Step{{}, {mark("a", e), mark("b", e)}, {mark("c", e)}}
	for range 2 { // the second time there is nothing to do
		check(t, s.MigrateBy(t.Context(), store.Migration{Before: func(v int) error { kept = append(kept, v); return nil }}, versions))
	}
	if got := e.values(t); !slices.Equal(got, slices.Repeat([]string{"vabc"}, 5)) {
		t.Errorf("got %q", got)
	}
	e.wantSchema(t, `{"version":3}`)
	if !slices.Equal(kept, []int{1, 2}) {
		t.Errorf("kept before versions %v", kept)
	}
}

// Nothing is changed where the old store can't be kept.
func TestMigrateKeepsFirst(t *testing.T) {
	e := old(t)
	err := store.StoreOf(e).MigrateBy(t.Context(), store.Migration{Before: func(int) error { return errRefused }}, [][]store.Step{{}, {mark("a", e)}})
	if !errors.Is(err, errRefused) || e.commits > 0 {
		t.Errorf("%v, %d commits", err, e.commits)
	}
}

// A crash at any commit loses nothing, and no record is changed twice. An older espm refuses the store from the
// first change on; a reader of this one reads it throughout.
func TestMigrateResumes(t *testing.T) {
	commits := 0
	for crash := 0; crash == 0 || crash <= commits; crash++ {
		e := old(t)
		s := store.StoreOf(e)
		versions := [][]store.Step{{}, {mark("a", e), mark("b", e)}}
		kept := 0
		m := store.Migration{Before: func(int) error { kept++; return nil }}
		if e.most = crash; crash > 0 {
			if err := s.MigrateBy(t.Context(), m, versions); !errors.Is(err, errRefused) {
				t.Fatalf("crash %d: %v", crash, err)
			}
			e.most = 0
		}
		check(t, s.MigrateBy(t.Context(), m, versions))
		commits = max(commits, e.commits)
		if got := e.values(t); !slices.Equal(got, slices.Repeat([]string{"vab"}, 5)) {
			t.Errorf("crash %d: got %q", crash, got)
		}
		e.wantSchema(t, `{"version":2}`)
		if want := 1; kept != want && crash != 1 { // before the first commit it is kept anew
			t.Errorf("crash %d: kept %d times", crash, kept)
		}
	}
	if commits < 8 {
		t.Errorf("%d commits", commits)
	}
}

// A record that somebody else writes between the reading and the commit is read anew.
func TestMigrateBesideWriters(t *testing.T) {
	e := old(t)
	wrote := false
	e.hook = func(last string) {
		if !wrote && last == "node/n3" {
			wrote = true
			check(t, second(e.Engine.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: "node/n3", Value: []byte("w")}}})))
		}
	}
	check(t, store.StoreOf(e).MigrateBy(t.Context(), store.Migration{}, [][]store.Step{{}, {mark("a", e)}}))
	if got := e.values(t); !slices.Equal(got, []string{"va", "va", "va", "wa", "va"}) || !wrote {
		t.Errorf("got %q", got)
	}
}

// A migration that is told to stop goes on the next time.
func TestMigrateStops(t *testing.T) {
	e := old(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := store.StoreOf(e).MigrateBy(ctx, store.Migration{Progress: func(int, string, int) { cancel() }}, [][]store.Step{{}, {mark("a", e)}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	e.wantSchema(t, `{"version":2,"migrating":{"step":0,"after":"node/n1"}}`)
	check(t, store.StoreOf(e).MigrateBy(t.Context(), store.Migration{}, [][]store.Step{{}, {mark("a", e)}}))
	if got := e.values(t); !slices.Equal(got, slices.Repeat([]string{"va"}, 5)) {
		t.Errorf("got %q", got)
	}
}

// A store of a newer espm is refused, and nothing of it is touched.
func TestNewerSchema(t *testing.T) {
	for _, version := range []int{store.CurrentSchema + 1, 1000} {
		e := newUnready(t)
		e.schema(t, fmt.Sprintf(`{"version":%d}`, version))
		for what, open := range openings {
			err := open(t, e)
			if err == nil || !strings.Contains(err.Error(), "use a newer espm") {
				t.Errorf("%s of version %d: %v", what, version, err)
			}
		}
		if e.commits > 0 {
			t.Errorf("version %d: %d commits", version, e.commits)
		}
	}
}

// A View reads what earlier versions wrote, and a store in the middle of a migration. One of an empty engine says what to do.
func TestOlderSchema(t *testing.T) {
	if _, err := store.NewView(t.Context(), newUnready(t)); err == nil || !strings.Contains(err.Error(), "start `espm serve` once") {
		t.Errorf("got %v", err)
	}
	for _, text := range []string{`{"version":1}`, fmt.Sprintf(`{"version":%d,"migrating":{"step":0,"after":"node/a"}}`, store.CurrentSchema)} {
		e := newUnready(t)
		e.schema(t, text)
		check(t, second(store.NewView(t.Context(), e)))
		check(t, second(store.Open(t.Context(), e)))
		if e.commits > 0 {
			t.Errorf("%s: %d commits", text, e.commits)
		}
	}
}

func TestDamagedSchema(t *testing.T) {
	for _, text := range []string{"", "{", "7", `{"version":0}`, `{"version":-1}`, `{"version":"1"}`, `{}`} {
		e := newUnready(t)
		e.schema(t, text)
		for what, open := range openings {
			if err := open(t, e); err == nil || !strings.Contains(err.Error(), "schema record is damaged") {
				t.Errorf("%s of %q: %v", what, text, err)
			}
		}
		if e.commits > 0 {
			t.Errorf("%q: %d commits", text, e.commits)
		}
	}
}

// A changed key needs a migration.
func TestKeysStay(t *testing.T) {
	if store.CurrentSchema != 2 {
		t.Fatal("a new schema version needs a test that opens a store of the version before")
	}
	for got, want := range store.KeySamples {
		if got != want {
			t.Errorf("key %q, want %q", got, want)
		}
	}
}

var openings = map[string]func(*testing.T, store.Engine) error{
	"New":     func(t *testing.T, e store.Engine) error { return second(store.New(t.Context(), e)) },
	"NewView": func(t *testing.T, e store.Engine) error { return second(store.NewView(t.Context(), e)) },
}

// unready is a real engine, as yet without a schema, that refuses commits to
// one key and counts the others.
type unready struct {
	store.Engine
	most    int // commits that go through, the next is refused; 0: all
	commits int
	hook    func(last string) // is told of each batch that a step made
}

var errRefused = errors.New("refused")

func newUnready(t *testing.T) *unready {
	return &unready{Engine: openEngine(t, filepath.Join(t.TempDir(), "espm.db"))}
}

func (u *unready) schema(t *testing.T, text string) {
	t.Helper()
	check(t, second(u.Engine.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: "schema", Value: []byte(text)}}})))
}

func (u *unready) Commit(ctx context.Context, b store.Batch) (int64, error) {
	if u.most > 0 && u.commits+1 >= u.most {
		return 0, errRefused
	}
	rev, err := u.Engine.Commit(ctx, b)
	if err == nil {
		u.commits++
	}
	return rev, err
}
