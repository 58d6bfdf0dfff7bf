package storetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// lifeChecks are about closing and opening.
var lifeChecks = []check{
	{"reopening keeps everything", checkReopen},
	{"a closed engine is unavailable", checkClosed},
	{"close answers the commits under way", func(t *testing.T, s *session) {
		const n = 50
		revisions := make([]int64, n)
		started := make(chan bool, n)
		go func() {
			<-started
			s.Close()
		}()
		together(n, func(i int) {
			started <- true
			revision, err := s.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: fmt.Sprint("k", i)}}})
			if err != nil && (!errors.Is(err, node.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome)) {
				t.Errorf("commit while closing: got %v, want ErrUnavailable and no doubt", err)
			}
			revisions[i] = revision
		})
		s.reopen(t)
		for i, revision := range revisions {
			key := fmt.Sprint("k", i)
			if revision > 0 {
				s.expect(t, key, "", revision)
			} else if _, err := s.Get(t.Context(), key); !errors.Is(err, store.ErrNoKey) {
				t.Errorf("%s was refused, but get gives %v", key, err)
			}
		}
	}},
}

func checkReopen(t *testing.T, s *session) {
	s.put(t, "a", "1")
	two := s.put(t, "b", "2")
	three := s.put(t, "a", "3")
	four := s.remove(t, "b")
	for range 2 {
		s.reopen(t)
		s.expect(t, "a", "3", three)
		if _, err := s.Get(t.Context(), "b"); !errors.Is(err, store.ErrNoKey) {
			t.Errorf("get b: got %v, want ErrNoKey", err)
		}
		if got := s.revision(t); got != four {
			t.Errorf("store is at revision %d, want %d", got, four)
		}
		w := s.watch(t, t.Context(), "", two)
		w.expect(t, at("a=3", three))
		w.expect(t, at("b deleted", four))
	}
	w := s.watch(t, t.Context(), "", four)
	w.expect(t, at("c=5", s.put(t, "c", "5")))
}

func checkClosed(t *testing.T, s *session) {
	s.put(t, "k", "v")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	_, err := s.Get(t.Context(), "k")
	errs := map[string]error{"get": err}
	_, _, errs["list"] = s.List(t.Context(), "", "", 1)
	_, errs["commit"] = s.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: "k"}}})
	errs["watch"] = s.watch(t, t.Context(), "", 0).fails(t)
	for name, err := range errs {
		if !errors.Is(err, node.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("%s: got %v, want ErrUnavailable and no doubt", name, err)
		}
	}
}
