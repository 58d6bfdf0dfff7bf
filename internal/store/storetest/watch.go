package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

var watchChecks = []check{
	{"watch from the start", func(t *testing.T, s *session) {
		s.put(t, "a", "1")
		s.put(t, "b", "2")
		w := s.watch(t, t.Context(), "", 0)
		w.expect(t, "a=1@1")
		w.expect(t, "b=2@2")
		s.put(t, "a", "3")
		w.expect(t, "a=3@3")
	}},
	{"watch from now", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", s.put(t, "a", "1"))
		s.put(t, "b", "2")
		w.expect(t, "b=2@2")
	}},
	{"watch resumes", func(t *testing.T, s *session) {
		for i := range 6 {
			s.put(t, fmt.Sprint("k", i), "v")
		}
		for after := range int64(6) {
			s.watch(t, t.Context(), "", after).expect(t, fmt.Sprintf("k%d=v@%d", after, after+1))
		}
	}},
	{"watch of a revision to come", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", 2)
		for i := range 4 {
			s.put(t, fmt.Sprint("k", i), "v")
		}
		w.expect(t, "k2=v@3")
	}},
	{"watch waits", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", 0)
		var wg sync.WaitGroup
		wg.Go(func() { s.tryPut(t, "k", "v") })
		w.expect(t, "k=v@1")
		wg.Wait() // the event may be here before the answer
	}},
	{"watch by prefix", func(t *testing.T, s *session) {
		s.commit(t, store.Batch{Puts: []store.Put{{Key: "a/1"}, {Key: "b/1"}, {Key: "a/\xff"}}})
		s.put(t, "b/2", "")
		s.commit(t, store.Batch{Puts: []store.Put{{Key: "b/3"}}, Deletes: []string{"a/1"}})
		s.put(t, "a/2", "")
		w := s.watch(t, t.Context(), "a/", 1)
		w.expect(t, "a/1 deleted@3")
		w.expect(t, "a/2=@4")
		all := s.watch(t, t.Context(), "a/\xff", 0)
		all.expect(t, "a/\xff=@1")
	}},
	{"watch tells nothing of an unwatched commit", func(t *testing.T, s *session) {
		s.put(t, "a", "1")
		at := s.commit(t, store.Batch{Puts: []store.Put{{Key: "quiet", Value: []byte("2")}}, Unwatched: true})
		s.expect(t, "quiet", "2", at)
		s.commit(t, store.Batch{Deletes: []string{"quiet"}, Unwatched: true})
		s.put(t, "b", "4")
		w := s.watch(t, t.Context(), "", 0)
		w.expect(t, "a=1@1")
		w.expect(t, "b=4@4")
		s.watch(t, t.Context(), "", at).expect(t, "b=4@4") // its revision is one to resume from
	}},
	{"watch tells every key of a commit", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", s.put(t, "c", "1"))
		s.commit(t, store.Batch{Puts: []store.Put{{Key: "b", Value: []byte("2")}, {Key: "a", Value: []byte("2")}}, Deletes: []string{"c", "none"}})
		got := map[string]bool{}
		for range 3 {
			event, err, _ := w.next()
			if err != nil {
				t.Fatal(err)
			}
			got[showEvent(event)] = true
		}
		if !got["a=2@2"] || !got["b=2@2"] || !got["c deleted@2"] {
			t.Errorf("got %v", got)
		}
		s.put(t, "next", "3")
		w.expect(t, "next=3@3")
	}},
	{"watch tells a delete", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", 0)
		s.put(t, "k", "v")
		w.expect(t, "k=v@1")
		s.remove(t, "k")
		w.expect(t, "k deleted@2")
	}},
	{"watch may skip but never the last", checkSkipping},
	{"delete of an absent key is no event", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", 0)
		s.remove(t, "none")
		s.put(t, "k", "v")
		w.expect(t, "k=v@2")
	}},
	{"watch loses nothing under concurrency", checkNoLoss},
	{"watch behind the history is compacted", checkCompaction},
	{"watch ends with its context", func(t *testing.T, s *session) {
		ctx, cancel := context.WithCancel(t.Context())
		s.put(t, "k", "v")
		w := s.watch(t, ctx, "", 0)
		w.expect(t, "k=v@1")
		cancel()
		if err := w.fails(t); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	}},
	{"watch wakes to the end of its context", func(t *testing.T, s *session) {
		ctx, cancel := context.WithCancel(t.Context())
		w := s.watch(t, ctx, "", 0)
		go cancel()
		if err := w.fails(t); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	}},
	{"watch ends with the engine", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", 0)
		s.put(t, "k", "v")
		w.expect(t, "k=v@1")
		go s.Close()
		if err := w.fails(t); !errors.Is(err, node.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
	}},
	{"a consumer that stops is left alone", func(t *testing.T, s *session) {
		s.commit(t, store.Batch{Puts: []store.Put{{Key: "a"}, {Key: "b"}}})
		for range s.Watch(t.Context(), "", 0) {
			break
		}
	}},
	{"a consumer may write", func(t *testing.T, s *session) {
		s.put(t, "0", "v")
		for event, err := range s.Watch(t.Context(), "", 0) {
			if err != nil {
				t.Fatal(err)
			}
			if event.Revision == 20 {
				break
			}
			s.put(t, fmt.Sprint(event.Revision), "v")
		}
	}},
}

// checkSkipping: an engine may tell or leave out what a later change has overtaken.
func checkSkipping(t *testing.T, s *session) {
	s.put(t, "passing", "1")
	s.put(t, "k", "1")
	s.remove(t, "passing")
	s.remove(t, "k")
	s.put(t, "k", "2")
	end := s.put(t, "k", "3")
	last := map[string]string{}
	revision := int64(0)
	for event, err := range s.Watch(t.Context(), "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		if event.Revision <= revision {
			t.Errorf("revision %d after %d", event.Revision, revision)
		}
		revision = event.Revision
		last[event.Key] = showEvent(event)
		if revision == end {
			break
		}
	}
	if last["passing"] != "passing deleted@3" || last["k"] != "k=3@6" {
		t.Errorf("got %v", last)
	}
}

func checkNoLoss(t *testing.T, s *session) {
	const writers, each, watches = 6, 30, 3 // two commits each: within MinHistory
	var mu sync.Mutex
	want := map[string]int64{}
	var streams []stream
	for range watches {
		streams = append(streams, s.watch(t, t.Context(), "seen/", 0))
	}
	var wg sync.WaitGroup
	seen := make([]map[string]int64, watches)
	for i, w := range streams {
		wg.Go(func() { seen[i] = w.collect(t, writers*each) })
	}
	together(writers, func(w int) {
		for i := range each {
			key := fmt.Sprintf("seen/%d/%d", w, i)
			revision := s.tryPut(t, key, "v")
			s.tryPut(t, fmt.Sprintf("other/%d", w), "v")
			mu.Lock()
			want[key] = revision
			mu.Unlock()
		}
	})
	wg.Wait()
	for i, got := range seen {
		if !maps.Equal(got, want) {
			t.Errorf("watch %d: got %v, want %v", i, got, want)
		}
	}
}

// collect takes n events and returns the revision of each key.
func (w stream) collect(t *testing.T, n int) map[string]int64 {
	got := map[string]int64{}
	last := int64(0)
	for range n {
		event, err, _ := w.next()
		if err != nil {
			t.Errorf("watch: %v", err)
			return got
		}
		if event.Revision <= last {
			t.Errorf("watch: revision %d after %d", event.Revision, last)
		}
		last = event.Revision
		got[event.Key] = event.Revision
	}
	return got
}

func checkCompaction(t *testing.T, s *session) {
	s.put(t, "first", "v")
	slow := s.watch(t, t.Context(), "", 0)
	slow.expect(t, "first=v@1")
	// The consumer of slow sits on its first event until the history has moved on.
	n := s.subject.History + 10
	together(n, func(i int) { s.tryPut(t, fmt.Sprint("k", i), "v") })
	newest := int64(n) + 1
	if err := slow.fails(t); !errors.Is(err, node.ErrCompacted) {
		t.Errorf("slow watch: got %v, want ErrCompacted", err)
	}
	for _, after := range []int64{0, 1, newest - int64(s.subject.History) - 1} {
		if err := s.watch(t, t.Context(), "", after).fails(t); !errors.Is(err, node.ErrCompacted) {
			t.Errorf("after %d: got %v, want ErrCompacted", after, err)
		}
	}
	for _, after := range []int64{newest - int64(s.subject.History), newest - 1} {
		event, err, _ := s.watch(t, t.Context(), "", after).next()
		if err != nil || event.Revision != after+1 {
			t.Errorf("after %d: got %s, %v", after, showEvent(event), err)
		}
	}
	s.expect(t, "first", "v", 1)
}
