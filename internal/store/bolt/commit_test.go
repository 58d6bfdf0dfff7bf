package bolt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// holdDisk keeps the committer waiting in its next transaction until release.
func holdDisk(t *testing.T, e *Engine) (release func()) {
	t.Helper()
	tx, err := e.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() { tx.Rollback() })
}

// awaitQueue waits until exactly n requests are queued.
func awaitQueue(e *Engine, n int) {
	await(e, func() bool { return len(e.queue) == n })
}

// await waits until a condition holds, which is asked with the engine's lock held.
func await(e *Engine, holds func() bool) {
	for {
		e.mu.Lock()
		ok := holds()
		e.mu.Unlock()
		if ok {
			return
		}
		runtime.Gosched()
	}
}

// blockCommitter hands in a commit that the committer takes and can't finish.
func blockCommitter(t *testing.T, e *Engine, ctx context.Context) (release func(), answer <-chan error) {
	t.Helper()
	release = holdDisk(t, e)
	taken := make(chan struct{})
	closeTaken := sync.OnceFunc(func() { close(taken) })
	e.update = func(fn func(*bbolt.Tx) error) error {
		closeTaken()
		return e.db.Update(fn)
	}
	errs := make(chan error, 1)
	go func() {
		_, err := e.Commit(ctx, put("first", "v"))
		errs <- err
	}()
	<-taken
	return release, errs
}

func TestGroupCommit(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	before := transactions(t, e)
	release, first := blockCommitter(t, e, t.Context())
	defer release()
	const n = 64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			revision, err := e.Commit(t.Context(), put(fmt.Sprint("k", i), "v"))
			if err != nil || revision < 2 {
				t.Errorf("commit: revision %d, %v", revision, err)
			}
		})
	}
	awaitQueue(e, n)
	release()
	wg.Wait()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if got := transactions(t, e) - before; got != 2 {
		t.Errorf("%d commits took %d transactions, want 2", n+1, got)
	}
}

// TestGroupBounds: a group takes at most maxGroup batches and maxGroupBytes.
func TestGroupBounds(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	before := transactions(t, e)
	release, first := blockCommitter(t, e, t.Context())
	defer release()
	large := strings.Repeat("v", maxGroupBytes/2)
	var wg sync.WaitGroup
	for i := range 4 { // the keys count as well: two of these don't fit one group
		wg.Go(func() {
			if _, err := e.Commit(t.Context(), put(fmt.Sprint("large", i), large)); err != nil {
				t.Error(err)
			}
		})
	}
	awaitQueue(e, 4)
	for i := range maxGroup + 1 { // the last of the large takes some of them along
		wg.Go(func() {
			if _, err := e.Commit(t.Context(), put(fmt.Sprint("k", i), "v")); err != nil {
				t.Error(err)
			}
		})
	}
	awaitQueue(e, 4+maxGroup+1)
	release()
	wg.Wait()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if got := transactions(t, e) - before; got != 1+4+1 {
		t.Errorf("got %d transactions, want 6", got)
	}
}

// TestGroupIsolates: within one group, each batch has its own answer.
func TestGroupIsolates(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	before := transactions(t, e)
	release, first := blockCommitter(t, e, t.Context())
	defer release()
	batches := []store.Batch{
		{Guards: []store.Guard{{Key: "k"}}, Puts: []store.Put{{Key: "k", Value: []byte("1")}}},
		{Guards: []store.Guard{{Key: "k"}}, Puts: []store.Put{{Key: "k", Value: []byte("no")}, {Key: "no"}}},
		{Guards: []store.Guard{{Key: "k", Revision: 2}}, Puts: []store.Put{{Key: "k", Value: []byte("2")}}},
		{Deletes: []string{"first"}},
	}
	type answer struct {
		revision int64
		err      error
	}
	answers := make([]answer, len(batches))
	var wg sync.WaitGroup
	for i, b := range batches {
		wg.Go(func() { answers[i].revision, answers[i].err = e.Commit(t.Context(), b) })
		awaitQueue(e, i+1) // so that they are in order
	}
	if _, err := e.Commit(t.Context(), put(strings.Repeat("k", bbolt.MaxKeySize+1), "v")); err == nil {
		t.Error("key too large: no error")
	}
	release()
	wg.Wait()
	<-first
	for i, want := range []string{"2 <nil>", `0 key "k" is at revision 2, not 0`, "3 <nil>", "4 <nil>"} {
		if got := fmt.Sprint(answers[i].revision, " ", answers[i].err); got != want {
			t.Errorf("batch %d: got %s, want %s", i, got, want)
		}
	}
	if got := transactions(t, e) - before; got != 2 {
		t.Errorf("got %d transactions, want 2", got)
	}
	expect(t, e, "k", "2", 3)
	expectAbsent(t, e, "first")
	expectAbsent(t, e, "no")
}

func TestFailedGuardsCostNoSync(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	before := transactions(t, e)
	_, err := e.Commit(t.Context(), store.Batch{Guards: []store.Guard{{Key: "k", Revision: 7}}})
	if _, ok := errors.AsType[*store.GuardError](err); !ok {
		t.Errorf("got %v, want a GuardError", err)
	}
	if got := transactions(t, e) - before; got != 0 {
		t.Errorf("a failed guard took %d transactions", got)
	}
}

func TestLongestKey(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	key := strings.Repeat("\xff", bbolt.MaxKeySize)
	at := mustCommit(t, e, put(key, "v"))
	expect(t, e, key, "v", at)
}

func TestCancel(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	ctx, cancel := context.WithCancel(t.Context())
	release, first := blockCommitter(t, e, ctx)
	defer release()
	queued := make(chan error, 1)
	queuedCtx, cancelQueued := context.WithCancel(t.Context())
	go func() {
		_, err := e.Commit(queuedCtx, put("queued", "v"))
		queued <- err
	}()
	awaitQueue(e, 1)

	cancelQueued()
	if err := <-queued; !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("queued: got %v, want context.Canceled and no doubt", err)
	}
	cancel()
	err := <-first
	for _, want := range []error{context.Canceled, store.ErrUnknownOutcome, node.ErrUnavailable} {
		if !errors.Is(err, want) {
			t.Errorf("under way: got %v, want it to wrap %q", err, want)
		}
	}
	release()
	if got := mustCommit(t, e, put("next", "v")); got != 2 {
		t.Errorf("next commit has revision %d, want 2", got)
	}
	expect(t, e, "first", "v", 1)
	expectAbsent(t, e, "queued")
}

// TestCloseDrains: Close answers what was handed in before it, and nothing later.
func TestCloseDrains(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	e := openAt(t, path)
	release, first := blockCommitter(t, e, t.Context())
	defer release()
	queued := make(chan error, 1)
	go func() {
		_, err := e.Commit(t.Context(), put("queued", "v"))
		queued <- err
	}()
	awaitQueue(e, 1)
	closed := make(chan error, 1)
	go func() { closed <- e.Close() }()
	await(e, func() bool { return e.closing })
	release()
	for _, answer := range []<-chan error{first, queued, closed} {
		if err := <-answer; err != nil {
			t.Error(err)
		}
	}
	expect(t, openAt(t, path), "queued", "v", 2)
}

// TestLayout: the file is for other tools to read as well.
func TestLayout(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	mustCommit(t, e, put("node/web1", `{"json":1}`))
	mustCommit(t, e, store.Batch{Puts: []store.Put{{Key: "a\xff"}}, Deletes: []string{"node/web1", "none"}})
	mustCommit(t, e, put("b", "x y"))
	got := map[string]string{}
	if err := e.db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				got[fmt.Sprintf("%s %q", name, k)] = string(v)
				return nil
			})
		})
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		`kv "a\xff"`: "2 ",
		`kv "b"`:     "3 x y",
		`history "\x00\x00\x00\x00\x00\x00\x00\x01"`: "+\"node/web1\"\n",
		`history "\x00\x00\x00\x00\x00\x00\x00\x02"`: "+\"a\\xff\"\n-\"node/web1\"\n",
		`history "\x00\x00\x00\x00\x00\x00\x00\x03"`: "+\"b\"\n",
		`meta "format"`:   "1",
		`meta "revision"`: "3",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestShorterHistory: an engine opened with less history than before trims at its first commit.
func TestShorterHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	e := openAt(t, path)
	for i := range 50 {
		mustCommit(t, e, put(fmt.Sprint("k", i), "v"))
	}
	e.Close()
	e, err := Open(path, Options{History: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	mustCommit(t, e, put("k", "v"))
	var kept []int64
	if err := e.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketHistory).ForEach(func(k, _ []byte) error {
			revision, err := historyRevision(k)
			kept = append(kept, revision)
			return err
		})
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(kept, []int64{49, 50, 51}) {
		t.Errorf("history holds %v, want 49, 50, 51", kept)
	}
}

func benchmarkCommit(b *testing.B, callers int, commit func(e *Engine, key string) error) {
	e := openAt(b, filepath.Join(b.TempDir(), "espm.db"))
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := commit(e, fmt.Sprint("k", i%1000)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkCommit64 has 64 callers, whose commits are grouped.
func BenchmarkCommit64(b *testing.B) {
	benchmarkCommit(b, 64, func(e *Engine, key string) error {
		_, err := e.Commit(b.Context(), put(key, "v"))
		return err
	})
}

// BenchmarkCommitOneFsync has the same callers wait for a transaction each.
func BenchmarkCommitOneFsync(b *testing.B) {
	benchmarkCommit(b, 64, func(e *Engine, key string) error {
		r, err := newRequest(put(key, "v"))
		if err != nil {
			return err
		}
		return e.db.Update(func(tx *bbolt.Tx) error {
			_, err := e.apply(tx, []*request{r})
			return err
		})
	})
}
