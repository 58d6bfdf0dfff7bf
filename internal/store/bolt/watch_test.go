package bolt

import (
	"fmt"
	"strings"
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
