package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/test/need"
)

// failOnce makes the next transaction fail with EIO, applied or not.
func failOnce(e *Engine, applied bool) {
	e.update = func(fn func(*bbolt.Tx) error) error {
		e.update = e.db.Update
		if !applied {
			return syscall.EIO
		}
		return errors.Join(syscall.EIO, e.db.Update(fn))
	}
}

func TestFaultNotApplied(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	mustCommit(t, e, put("k", "1"))
	failOnce(e, false)
	_, err := e.Commit(t.Context(), put("k", "2"))
	if !errors.Is(err, node.ErrUnavailable) || !errors.Is(err, syscall.EIO) || errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("got %v, want ErrUnavailable, EIO and no doubt", err)
	}
	expect(t, e, "k", "1", 1)
	if got := mustCommit(t, e, put("k", "3")); got != 2 {
		t.Errorf("next revision is %d, want 2", got)
	}
}

// TestFaultAppliedAnyway: the last sync failed, and works when tried again.
func TestFaultAppliedAnyway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	e := openAt(t, path)
	mustCommit(t, e, put("k", "1"))
	w := watchOne(t, e, 1)
	failOnce(e, true)
	if got := mustCommit(t, e, put("k", "2")); got != 2 {
		t.Errorf("got revision %d, want 2", got)
	}
	if got := <-w; got.Revision != 2 {
		t.Errorf("watch got %v, want revision 2", got)
	}
	checkFile(t, e)
	e.Close()
	expect(t, openAt(t, path), "k", "2", 2)
}

// TestFaultUnknown: the last sync failed, and fails when tried again.
func TestFaultUnknown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	e := openAt(t, path)
	mustCommit(t, e, put("k", "1"))
	sync := e.sync
	e.sync = func() error { return fmt.Errorf("sync: %w", syscall.EIO) }
	failOnce(e, true)
	_, err := e.Commit(t.Context(), put("k", "2"))
	for _, want := range []error{node.ErrUnavailable, syscall.EIO, store.ErrUnknownOutcome} {
		if !errors.Is(err, want) {
			t.Errorf("got %v, want it to wrap %q", err, want)
		}
	}
	doubt, _ := errors.AsType[*store.DoubtError](err)
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := doubt.Settle(soon); !errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("settling while the disk fails: got %v, want ErrUnknownOutcome", err)
	}
	before := transactions(t, e)
	_, err = e.Commit(t.Context(), put("k", "3"))
	if !errors.Is(err, node.ErrUnavailable) || !errors.Is(err, syscall.EIO) || errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("while unsettled: got %v, want ErrUnavailable, EIO and no doubt", err)
	}
	if got := transactions(t, e); got != before {
		t.Error("while unsettled: something was written")
	}

	e.sync = sync
	changed := e.revisionChanged()
	_, err = e.Commit(t.Context(), store.Batch{Guards: []store.Guard{{Key: "k", Revision: 1}}})
	if guard, ok := errors.AsType[*store.GuardError](err); !ok || guard.Have != 2 {
		t.Errorf("once settled: got %v, want a GuardError that has 2", err)
	}
	if revision, err := doubt.Settle(t.Context()); revision != 2 || err != nil {
		t.Errorf("once settled: the outcome is %d, %v, want revision 2", revision, err)
	}
	select {
	case <-changed:
	default:
		t.Error("watches were not told of the commit that has been settled")
	}
	if got := mustCommit(t, e, put("other", "4")); got != 3 {
		t.Errorf("got revision %d, want 3", got)
	}
	if got := <-watchOne(t, e, 1); got.Revision != 2 {
		t.Errorf("watch got %v, want revision 2", got)
	}
	checkFile(t, e)
	e.Close()
	expect(t, openAt(t, path), "k", "2", 2)
}

// TestHangingSync: the caller does not wait for a disk that hangs, and is told the outcome once it goes on.
func TestHangingSync(t *testing.T) {
	for name, hang := range map[string]func(e *Engine, answers <-chan error) func(func(*bbolt.Tx) error) error{
		"before the pages": func(e *Engine, answers <-chan error) func(func(*bbolt.Tx) error) error {
			return func(fn func(*bbolt.Tx) error) error {
				return errors.Join(<-answers, e.db.Update(fn))
			}
		},
		"after the meta page": func(e *Engine, answers <-chan error) func(func(*bbolt.Tx) error) error {
			return func(fn func(*bbolt.Tx) error) error {
				return errors.Join(e.db.Update(fn), <-answers)
			}
		},
		"and fails": func(e *Engine, answers <-chan error) func(func(*bbolt.Tx) error) error {
			return func(func(*bbolt.Tx) error) error {
				<-answers
				return syscall.EIO
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := openIn(t, t.TempDir()).(*Engine)
			answers := make(chan error)
			ctx, cancel := context.WithCancel(t.Context())
			hanging := hang(e, answers)
			e.update = func(fn func(*bbolt.Tx) error) error {
				cancel() // the committer has it: it can't be taken back
				return hanging(fn)
			}
			_, err := e.Commit(ctx, put("k", "1"))
			doubt, ok := errors.AsType[*store.DoubtError](err)
			if !ok || !errors.Is(err, node.ErrUnavailable) {
				t.Fatalf("got %v, want a DoubtError and ErrUnavailable", err)
			}
			if _, err := doubt.Settle(ctx); !errors.Is(err, store.ErrUnknownOutcome) {
				t.Errorf("while the disk hangs: got %v, want ErrUnknownOutcome", err)
			}
			close(answers)
			revision, err := doubt.Settle(t.Context())
			if name == "and fails" {
				if !errors.Is(err, syscall.EIO) || errors.Is(err, store.ErrUnknownOutcome) {
					t.Errorf("the outcome is %d, %v, want EIO and no doubt", revision, err)
				}
				expectAbsent(t, e, "k")
				return
			}
			if revision != 1 || err != nil {
				t.Errorf("the outcome is %d, %v, want revision 1", revision, err)
			}
			expect(t, e, "k", "1", 1)
		})
	}
}

// TestFaultTakesGuardsAlong: a guard that failed on a change which then came
// to nothing has not failed.
func TestFaultTakesGuardsAlong(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	release, first := blockCommitter(t, e, t.Context())
	defer release()
	guarded := store.Batch{Guards: []store.Guard{{Key: "k"}}, Puts: []store.Put{{Key: "k"}}}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = e.Commit(t.Context(), guarded) })
	}
	awaitQueue(e, 2)
	update := e.update
	e.update = func(fn func(*bbolt.Tx) error) error {
		return update(func(tx *bbolt.Tx) error { return errors.Join(fn(tx), syscall.ENOSPC) })
	}
	release()
	wg.Wait()
	<-first
	for _, err := range errs {
		if !errors.Is(err, node.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("got %v, want ErrUnavailable and ENOSPC", err)
		}
	}
	expectAbsent(t, e, "k")
}

func TestWithErrno(t *testing.T) {
	path := &fs.PathError{Op: "truncate", Path: "espm.db", Err: syscall.ENOSPC}
	textOnly := fmt.Errorf("file resize error: %s", path)
	for _, err := range []error{textOnly, fmt.Errorf("write: %w", path)} {
		got := withErrno(err)
		if !errors.Is(got, syscall.ENOSPC) || !errors.Is(got, err) || got.Error() != err.Error() {
			t.Errorf("got %v, want %v with ENOSPC", got, err)
		}
	}
	if plain := errors.New("other"); withErrno(plain) != plain {
		t.Error("an error without errno was changed")
	}
}

func TestDiskFull(t *testing.T) {
	dir := need.Disk(t, "4m")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "espm.db")
	e := openAt(t, path)

	value := strings.Repeat("v", 5000)
	kept := fillDisk(t, e, value)
	if len(kept) == 0 {
		t.Fatal("nothing was committed")
	}
	for range 50 { // it stays full, and nothing goes wrong by trying
		_, err := e.Commit(t.Context(), put("large", strings.Repeat("v", 1<<20)))
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v, want ENOSPC", err)
		}
		if r, err := e.Get(t.Context(), "large"); !errors.Is(err, store.ErrNoKey) {
			t.Fatalf("get: %d bytes, %v", len(r.Value), err)
		}
	}
	intact := func() {
		t.Helper()
		for key, revision := range kept {
			expect(t, e, key, value, revision)
		}
		checkFile(t, e)
	}
	intact()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		key := fmt.Sprint("room/", i)
		kept[key] = mustCommit(t, e, put(key, value))
	}
	intact()
	e.Close()
	e = openAt(t, path)
	intact()
	kept["reopened"] = mustCommit(t, e, put("reopened", value))
	intact()
}

// fillDisk commits from many callers until nothing more goes in, and returns what did.
func fillDisk(t *testing.T, e *Engine, value string) map[string]int64 {
	t.Helper()
	kept := map[string]int64{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d/%d", w, i)
				revision, err := e.Commit(t.Context(), put(key, value))
				if err != nil {
					if !errors.Is(err, node.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) || errors.Is(err, store.ErrUnknownOutcome) {
						t.Errorf("got %v, want ErrUnavailable, ENOSPC and no doubt", err)
					}
					return
				}
				mu.Lock()
				kept[key] = revision
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return kept
}
