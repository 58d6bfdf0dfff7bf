package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

var watchChecks = []check{
	{"watch from the start", func(t *testing.T, s *session) {
		one, two := s.put(t, "a", "1"), s.put(t, "b", "2")
		w := s.watch(t, t.Context(), "", 0)
		w.expect(t, at("a=1", one))
		w.expect(t, at("b=2", two))
		w.expect(t, at("a=3", s.put(t, "a", "3")))
	}},
	{"watch from now", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", s.put(t, "a", "1"))
		w.expect(t, at("b=2", s.put(t, "b", "2")))
	}},
	{"watch resumes", func(t *testing.T, s *session) {
		revisions := []int64{0}
		for i := range 6 {
			revisions = append(revisions, s.put(t, fmt.Sprint("k", i), "v"))
		}
		for i, after := range revisions[:6] {
			s.watch(t, t.Context(), "", after).expect(t, at(fmt.Sprintf("k%d=v", i), revisions[i+1]))
		}
	}},
	{"watch of a revision to come", func(t *testing.T, s *session) {
		after := s.put(t, "k", "v") + 10
		w := s.watch(t, t.Context(), "", after)
		for i := 0; ; i++ {
			key := fmt.Sprint("k", i)
			if revision := s.put(t, key, "v"); revision > after {
				w.expect(t, at(key+"=v", revision))
				return
			}
		}
	}},
	{"watch waits", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", 0)
		var wg sync.WaitGroup
		var revision int64
		wg.Go(func() { revision = s.tryPut(t, "k", "v") })
		event, err, _ := w.next()
		wg.Wait() // the event may be here before the answer
		if showEvent(event) != at("k=v", revision) || err != nil {
			t.Errorf("got %s, %v, want revision %d", showEvent(event), err, revision)
		}
	}},
	{"watch by prefix", func(t *testing.T, s *session) {
		one := s.commit(t, store.Batch{Puts: []store.Put{{Key: "a/1"}, {Key: "b/1"}, {Key: "a/\xff"}}})
		s.put(t, "b/2", "")
		three := s.commit(t, store.Batch{Puts: []store.Put{{Key: "b/3"}}, Deletes: []string{"a/1"}})
		four := s.put(t, "a/2", "")
		w := s.watch(t, t.Context(), "a/", one)
		w.expect(t, at("a/1 deleted", three))
		w.expect(t, at("a/2=", four))
		all := s.watch(t, t.Context(), "a/\xff", 0)
		all.expect(t, at("a/\xff=", one))
	}},
	{"watch tells nothing of an unwatched commit", func(t *testing.T, s *session) {
		one := s.put(t, "a", "1")
		two := s.commit(t, store.Batch{Puts: []store.Put{{Key: "quiet", Value: []byte("2")}}, Unwatched: true})
		s.expect(t, "quiet", "2", two)
		s.commit(t, store.Batch{Deletes: []string{"quiet"}, Unwatched: true})
		four := s.put(t, "b", "4")
		w := s.watch(t, t.Context(), "", 0)
		w.expect(t, at("a=1", one))
		w.expect(t, at("b=4", four))
		s.watch(t, t.Context(), "", two).expect(t, at("b=4", four)) // its revision is one to resume from
	}},
	{"watch tells every key of a commit", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", s.put(t, "c", "1"))
		two := s.commit(t, store.Batch{Puts: []store.Put{{Key: "b", Value: []byte("2")}, {Key: "a", Value: []byte("2")}}, Deletes: []string{"c", "none"}})
		got := map[string]bool{}
		for range 3 {
			event, err, _ := w.next()
			if err != nil {
				t.Fatal(err)
			}
			got[showEvent(event)] = true
		}
		if !got[at("a=2", two)] || !got[at("b=2", two)] || !got[at("c deleted", two)] {
			t.Errorf("got %v", got)
		}
		w.expect(t, at("next=3", s.put(t, "next", "3")))
	}},
	{"watch tells a delete", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", 0)
		w.expect(t, at("k=v", s.put(t, "k", "v")))
		w.expect(t, at("k deleted", s.remove(t, "k")))
	}},
	{"watch may skip but never the last", checkSkipping},
	{"delete of an absent key is no event", func(t *testing.T, s *session) {
		w := s.watch(t, t.Context(), "", 0)
		s.remove(t, "none")
		w.expect(t, at("k=v", s.put(t, "k", "v")))
	}},
	{"watch loses nothing under concurrency", checkNoLoss},
	{"watch behind the history is compacted", checkCompaction},
	{"watch ends with its context", func(t *testing.T, s *session) {
		ctx, cancel := context.WithCancel(t.Context())
		one := s.put(t, "k", "v")
		w := s.watch(t, ctx, "", 0)
		w.expect(t, at("k=v", one))
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
		w.expect(t, at("k=v", s.put(t, "k", "v")))
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
		seen := 0
		for event, err := range s.Watch(t.Context(), "", 0) {
			if err != nil {
				t.Fatal(err)
			}
			if seen++; seen == 20 {
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
	gone := s.remove(t, "passing")
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
	if last["passing"] != at("passing deleted", gone) || last["k"] != at("k=3", end) {
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
		if event.Revision < last {
			t.Errorf("watch: revision %d after %d", event.Revision, last)
		}
		last = event.Revision
		got[event.Key] = event.Revision
	}
	return got
}

func checkCompaction(t *testing.T, s *session) {
	first := s.put(t, "first", "v")
	slow := s.watch(t, t.Context(), "", 0)
	slow.expect(t, at("first=v", first))
	// The consumer of slow sits on its first event until the history has moved on.
	kept, revisions := s.subject.History, []int64{first}
	for len(revisions) < kept+10 {
		more := make([]int64, 100)
		together(len(more), func(i int) { more[i] = s.tryPut(t, fmt.Sprint("k", i), "v") })
		slices.Sort(more)
		revisions = append(revisions, slices.Compact(more)...)
	}
	n := len(revisions)
	if err := slow.fails(t); !errors.Is(err, node.ErrCompacted) {
		t.Errorf("slow watch: got %v, want ErrCompacted", err)
	}
	for _, after := range []int64{0, first, revisions[n-kept-2]} {
		if err := s.watch(t, t.Context(), "", after).fails(t); !errors.Is(err, node.ErrCompacted) {
			t.Errorf("after %d: got %v, want ErrCompacted", after, err)
		}
	}
	last := revisions[n-1]
	for _, after := range []int64{revisions[n-kept-1], revisions[n-2]} {
		event, err, _ := s.watch(t, t.Context(), "", after).next()
		if err != nil || event.Revision <= after || event.Revision > last {
			t.Errorf("after %d: got %s, %v", after, showEvent(event), err)
		}
	}
	s.expect(t, "first", "v", first)
}
