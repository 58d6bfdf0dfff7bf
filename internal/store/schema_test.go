package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/store"
)

// Migrations run in order, each once, and an old store is brought up from
// where it is.
func TestMigrations(t *testing.T) {
	e := newUnready(t)
	var ran []string
	step := func(name string) store.Migration {
		return func(ctx context.Context, e store.Engine) error {
			ran = append(ran, name)
			_, err := e.Commit(ctx, store.Batch{Puts: []store.Put{{Key: "did/" + name}}})
			return err
		}
	}
	one, two, three := step("1"), step("2"), step("3")
	for _, steps := range [][]store.Migration{{one}, {one}, {one, two, three}, {one, two, three}} {
		if err := store.Migrate(t.Context(), e, steps); err != nil {
			t.Fatal(err)
		}
		if version, err := store.SchemaVersion(t.Context(), e); err != nil || version != len(steps) {
			t.Errorf("version %d, %v, want %d", version, err, len(steps))
		}
	}
	if want := []string{"1", "2", "3"}; !reflect.DeepEqual(ran, want) {
		t.Errorf("ran %q, want %q", ran, want)
	}
}

// A crash between a step and its version makes the step run again, and no
// earlier one.
func TestMigrationResumes(t *testing.T) {
	for name, crash := range map[string]func(*unready){
		"before the version is written": func(e *unready) { e.refuse = "schema" },
		"in the step":                   func(e *unready) { e.refuse = "did" },
	} {
		t.Run(name, func(t *testing.T) {
			e := newUnready(t)
			ran := map[int]int{}
			step := func(i int) store.Migration {
				return func(ctx context.Context, e store.Engine) error {
					ran[i]++
					_, err := e.Commit(ctx, store.Batch{Puts: []store.Put{{Key: "did"}}})
					return err
				}
			}
			check(t, store.Migrate(t.Context(), e, []store.Migration{step(0)}))
			crash(e)
			err := store.Migrate(t.Context(), e, []store.Migration{step(0), step(1), step(2)})
			if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "schema version") {
				t.Errorf("got %v", err)
			}
			e.refuse = ""
			check(t, store.Migrate(t.Context(), e, []store.Migration{step(0), step(1), step(2)}))
			if want := map[int]int{0: 1, 1: 2, 2: 1}; !reflect.DeepEqual(ran, want) {
				t.Errorf("ran %v, want %v", ran, want)
			}
		})
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

// A View, which can't migrate, refuses an older store, and says what to do.
func TestOlderSchema(t *testing.T) {
	if _, err := store.NewView(t.Context(), newUnready(t)); err == nil || !strings.Contains(err.Error(), "start `espm serve` once") {
		t.Errorf("got %v", err)
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
		t.Fatal("a new schema version needs a test that opens a store of the version before: keep one in testdata")
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
	refuse  string
	commits int
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
	for _, p := range b.Puts {
		if p.Key == u.refuse {
			return 0, errRefused
		}
	}
	u.commits++
	return u.Engine.Commit(ctx, b)
}
