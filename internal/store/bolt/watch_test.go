package bolt

import (
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/espm-project/espm/internal/store"
)

// watchOne returns the first event after a revision.
func watchOne(t *testing.T, e *Engine, after int64) <-chan store.Event {
	events := make(chan store.Event, 1)
	go func() {
		for event, err := range e.Watch(t.Context(), "", after) {
			if err != nil {
				t.Error(err)
			}
			events <- event
			return
		}
	}()
	return events
}

// TestWatchTellsWhatStands: an event comes with the value that its revision wrote.
func TestWatchTellsWhatStands(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	for _, value := range []string{"1", "2", "3"} {
		mustCommit(t, e, put("k", value))
	}
	if got := <-watchOne(t, e, 0); got.Revision != 3 || string(got.Value) != "3" {
		t.Errorf("got %v, want 3 at revision 3", got)
	}
}

// TestWatchPages: what one page can't hold comes with the next, nothing twice.
func TestWatchPages(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	var b store.Batch
	for i := range maxPageEvents + 10 {
		b.Puts = append(b.Puts, store.Put{Key: fmt.Sprintf("%04d", i)})
	}
	mustCommit(t, e, b)
	mustCommit(t, e, put("large", strings.Repeat("v", maxPageBytes)))
	last := mustCommit(t, e, put("last", "v"))
	seen := map[string]int{}
	for event, err := range e.Watch(t.Context(), "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		seen[event.Key]++
		if event.Revision == last {
			break
		}
	}
	for key, n := range seen {
		if n != 1 {
			t.Errorf("%s was told %d times", key, n)
		}
	}
	if len(seen) != maxPageEvents+12 {
		t.Errorf("got %d events, want %d", len(seen), maxPageEvents+12)
	}
}

// TestWatchesShareOneRead: however many watches there are, the history is read once for a commit.
func TestWatchesShareOneRead(t *testing.T) {
	e := openIn(t, t.TempDir()).(*Engine)
	const watches, commits = 200, 20
	after := mustCommit(t, e, put("k/0", "v"))
	var reached [commits]sync.WaitGroup
	for i := range reached {
		reached[i].Add(watches)
	}
	for range watches {
		go func() {
			n := 0
			for _, err := range e.Watch(t.Context(), "k/", after) {
				if err != nil {
					return
				}
				reached[n].Done()
				if n++; n == commits {
					break
				}
			}
		}()
	}
	before := e.db.Stats().TxN
	for i := range commits {
		mustCommit(t, e, put(fmt.Sprintf("k/%d", i+1), "v"))
		reached[i].Wait()
	}
	if reads := e.db.Stats().TxN - before; reads > watches+4*commits {
		t.Errorf("%d transactions for %d commits and %d watches", reads, commits, watches)
	}
}

// TestWatchBehindItsTopic: a watch that comes late, or is slow, reads what its topic has dropped from the history.
func TestWatchBehindItsTopic(t *testing.T) {
	e, err := Open(filepath.Join(t.TempDir(), "espm.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	slow, stop := iter.Pull2(e.Watch(t.Context(), "k/", 0))
	defer stop()
	mustCommit(t, e, put("k/first", "v"))
	if event, err, _ := slow(); event.Key != "k/first" || err != nil {
		t.Fatalf("got %v, %v", event, err)
	}
	const keys = 3 * maxPageEvents
	var last int64
	for i := range keys {
		last = mustCommit(t, e, put(fmt.Sprintf("k/%04d", i), "v"))
	}
	collect := func(next func() (store.Event, error, bool)) {
		t.Helper()
		seen := map[string]int{}
		for {
			event, err, _ := next()
			if err != nil {
				t.Fatal(err)
			}
			seen[event.Key]++
			if event.Revision == last {
				break
			}
		}
		delete(seen, "k/first")
		for key, n := range seen {
			if n != 1 {
				t.Errorf("%s was told %d times", key, n)
			}
		}
		if len(seen) != keys {
			t.Errorf("got %d keys, want %d", len(seen), keys)
		}
	}
	collect(slow)
	late, stopLate := iter.Pull2(e.Watch(t.Context(), "k/", 0))
	defer stopLate()
	collect(late)
	e.fan.mu.Lock()
	defer e.fan.mu.Unlock()
	if n := len(e.fan.topics["k/"].events); n > maxPageEvents {
		t.Errorf("the topic has %d events", n)
	}
}

// TestQuietWatchKeepsUp: a watch whose keys don't change is told where the history is, so it never falls behind it.
func TestQuietWatchKeepsUp(t *testing.T) {
	e, err := Open(filepath.Join(t.TempDir(), "espm.db"), Options{History: 2 * maxQuietRevisions})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	quiet, stop := iter.Pull2(e.Watch(t.Context(), "quiet/", 0))
	defer stop()
	got := make(chan store.Event)
	go func() { event, _, _ := quiet(); got <- event }()
	for range 6 {
		together(t, e, maxQuietRevisions)
	}
	var b store.Batch
	for i := range 2 * maxPageEvents { // more than the topic keeps: the watch has to read the history
		b.Puts = append(b.Puts, store.Put{Key: fmt.Sprintf("quiet/%04d", i)})
	}
	at := mustCommit(t, e, b)
	if event := <-got; event.Revision != at || event.Key != "quiet/0000" {
		t.Errorf("got %v, want quiet/0000 at %d", event, at)
	}
}

// together commits n batches at once, so that they share transactions.
func together(t *testing.T, e *Engine, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := e.Commit(t.Context(), put(fmt.Sprintf("other/%d", i), "v")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkCommitBesideWatches: what a commit takes beside 3,000 watches of its keys, and of others.
func BenchmarkCommitBesideWatches(b *testing.B) {
	for name, prefix := range map[string]string{"none": "", "of its keys": "k/", "of others": "other/"} {
		b.Run(name, func(b *testing.B) {
			e, err := Open(filepath.Join(b.TempDir(), "espm.db"), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			watches := 3000
			if prefix == "" {
				watches = 0
			}
			for range watches {
				go func() {
					for range e.Watch(b.Context(), prefix, 0) {
					}
				}()
			}
			for b.Loop() {
				if _, err := e.Commit(b.Context(), put("k/1", "v")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
