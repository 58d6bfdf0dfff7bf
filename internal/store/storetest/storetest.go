// Package storetest is the suite that every store engine passes. It assumes no more of revisions
// than that they grow: commits at once may share one, and there may be gaps.
package storetest

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/espm-project/espm/internal/store"
)

// MinHistory is the shortest history the suite can work with.
const MinHistory = 400

// Subject is the engine under test.
type Subject struct {
	// Open returns an engine that keeps its records in dir, with what an
	// engine opened there before, and closed since, has left. The suite closes it.
	Open func(t *testing.T, dir string) store.Engine

	// History is how many revisions the engine keeps for watches, MinHistory or more.
	History int
}

// check is one test of the suite. Each gets an empty engine of its own.
type check struct {
	name string
	run  func(t *testing.T, s *session)
}

var checks = slices.Concat(readChecks, commitChecks, watchChecks, lifeChecks)

// Run tests an engine. It fails if no test ran, be it for a wrong -run pattern.
func Run(t *testing.T, subject Subject) {
	if subject.Open == nil || subject.History < MinHistory {
		t.Fatalf("storetest: subject needs Open and a History of %d or more", MinHistory)
	}
	ran := 0
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			ran++
			s := &session{subject: subject, dir: t.TempDir()}
			s.Engine = subject.Open(t, s.dir)
			t.Cleanup(func() { s.Close() })
			c.run(t, s)
		})
	}
	if ran == 0 {
		t.Fatal("storetest: no test of the suite ran")
	}
}

// session is the engine of one test.
type session struct {
	store.Engine
	subject Subject
	dir     string
}

// reopen closes the engine and opens its folder again.
func (s *session) reopen(t *testing.T) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s.Engine = s.subject.Open(t, s.dir)
}

// commit applies a batch that must succeed.
func (s *session) commit(t *testing.T, b store.Batch) int64 {
	t.Helper()
	revision, err := s.Commit(t.Context(), b)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return revision
}

// put sets one key.
func (s *session) put(t *testing.T, key, value string) int64 {
	t.Helper()
	return s.commit(t, store.Batch{Puts: []store.Put{{Key: key, Value: []byte(value)}}})
}

// remove deletes one key.
func (s *session) remove(t *testing.T, key string) int64 {
	t.Helper()
	return s.commit(t, store.Batch{Deletes: []string{key}})
}

// expect checks one record.
func (s *session) expect(t *testing.T, key, want string, revision int64) {
	t.Helper()
	r, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	if r.Key != key || string(r.Value) != want || r.Revision != revision {
		t.Fatalf("get %q: got %s, want %q at %d", key, show(r), want, revision)
	}
}

// keys lists everything with a prefix, page by page.
func (s *session) keys(t *testing.T, prefix string, limit int) []string {
	t.Helper()
	var keys []string
	after := ""
	for {
		page, _, err := s.List(t.Context(), prefix, after, limit)
		if err != nil {
			t.Fatalf("list %q after %q: %v", prefix, after, err)
		}
		for _, r := range page {
			if after != "" && r.Key <= after {
				t.Fatalf("list %q after %q: got %q", prefix, after, r.Key)
			}
			keys = append(keys, r.Key)
		}
		if len(page) < limit {
			return keys
		}
		after = page[len(page)-1].Key
	}
}

// revision is the newest revision.
func (s *session) revision(t *testing.T) int64 {
	t.Helper()
	_, revision, err := s.List(t.Context(), "", "", 1)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	return revision
}

// stream is a watch that is pulled from.
type stream struct {
	next func() (store.Event, error, bool)
	stop func()
}

func (s *session) watch(t *testing.T, ctx context.Context, prefix string, after int64) stream {
	t.Helper()
	next, stop := iter.Pull2(s.Watch(ctx, prefix, after))
	t.Cleanup(stop)
	return stream{next: next, stop: stop}
}

// at is the text of a change at a revision: "k=v" or "k deleted".
func at(change string, revision int64) string { return fmt.Sprintf("%s@%d", change, revision) }

// expect takes the next event, waiting for it, and compares it with its text.
func (w stream) expect(t *testing.T, want string) {
	t.Helper()
	event, err, ok := w.next()
	if !ok || err != nil {
		t.Fatalf("watch: got error %v (more: %t), want %s", err, ok, want)
	}
	if got := showEvent(event); got != want {
		t.Fatalf("watch: got %s, want %s", got, want)
	}
}

// fails takes the watch's error, which must be its last word.
func (w stream) fails(t *testing.T) error {
	t.Helper()
	event, err, ok := w.next()
	if !ok || err == nil {
		t.Fatalf("watch: got %s (more: %t), want an error", showEvent(event), ok)
	}
	if event, err, ok := w.next(); ok {
		t.Fatalf("watch: got %s and error %v after the error", showEvent(event), err)
	}
	return err
}

func show(r store.Record) string { return fmt.Sprintf("%q=%.60q@%d", r.Key, r.Value, r.Revision) }

func showEvent(e store.Event) string {
	if e.Deleted {
		return fmt.Sprintf("%s deleted@%d", e.Key, e.Revision) + strings.Repeat(" with a value", min(len(e.Value), 1))
	}
	return fmt.Sprintf("%s=%s@%d", e.Key, e.Value, e.Revision)
}

// together calls fn n times at once and waits for all.
func together(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}
