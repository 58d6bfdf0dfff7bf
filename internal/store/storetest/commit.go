package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/store"
)

var commitChecks = []check{
	{"revision rises with each commit", func(t *testing.T, s *session) {
		for range 5 {
			before := s.revision(t)
			now := s.put(t, "k", "v")
			if now <= before {
				t.Fatalf("got revision %d after %d", now, before)
			}
			if got := s.revision(t); got < now {
				t.Fatalf("list is at revision %d after %d", got, now)
			}
		}
	}},
	{"one commit gives one revision", func(t *testing.T, s *session) {
		s.put(t, "c", "old")
		at := s.commit(t, store.Batch{Puts: []store.Put{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}}, Deletes: []string{"c"}})
		s.expect(t, "a", "1", at)
		s.expect(t, "b", "2", at)
		if got := s.keys(t, "", 10); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("got keys %q", got)
		}
	}},
	{"delete of an absent key", func(t *testing.T, s *session) {
		if got := s.remove(t, "absent"); got < 1 {
			t.Errorf("got revision %d", got)
		}
	}},
	{"commits at once", func(t *testing.T, s *session) {
		const n = 100
		revisions := make([]int64, n)
		together(n, func(i int) { revisions[i] = s.tryPut(t, fmt.Sprint("k", i), "v") })
		for i, revision := range revisions {
			s.expect(t, fmt.Sprint("k", i), "v", revision)
		}
		if next := s.put(t, "k", "v"); next <= slices.Max(revisions) {
			t.Errorf("got revision %d after %d", next, slices.Max(revisions))
		}
	}},
	{"guards", checkGuards},
	{"a failed batch applies nothing", func(t *testing.T, s *session) {
		at := s.put(t, "kept", "v")
		_, err := s.Commit(t.Context(), store.Batch{
			Guards:  []store.Guard{{Key: "kept", Revision: at}, {Key: "kept2", Revision: 9}},
			Puts:    []store.Put{{Key: "new", Value: []byte("v")}, {Key: "kept2", Value: []byte("v")}},
			Deletes: []string{"kept"},
		})
		if _, ok := errors.AsType[*store.GuardError](err); !ok {
			t.Fatalf("got %v, want a GuardError", err)
		}
		s.expect(t, "kept", "v", at)
		if got := s.keys(t, "", 10); !slices.Equal(got, []string{"kept"}) {
			t.Errorf("got keys %q", got)
		}
	}},
	{"guarded increments lose nothing", checkIncrements},
	{"impossible batches are refused", checkImpossible},
	{"bounds", checkBounds},
	{"index keys", checkIndex},
	{"a cancelled context applies nothing", func(t *testing.T, s *session) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Commit(ctx, store.Batch{Puts: []store.Put{{Key: "k"}}})
		if !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("got %v, want context.Canceled and no doubt", err)
		}
		if r, err := s.Get(t.Context(), "k"); !errors.Is(err, store.ErrNoKey) {
			t.Errorf("the cancelled batch was applied: %s, %v", show(r), err)
		}
	}},
	{"values are not shared", checkAliasing},
	{"large values", func(t *testing.T, s *session) {
		large := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
		for _, key := range []string{"a", "b"} {
			at := s.put(t, key, string(large))
			r, err := s.Get(t.Context(), key)
			if err != nil || r.Revision != at || !bytes.Equal(r.Value, large) {
				t.Errorf("get %q: %d bytes at %d, %v", key, len(r.Value), r.Revision, err)
			}
		}
	}},
}

// tryPut is put for use in a goroutine; 0 where it failed.
func (s *session) tryPut(t *testing.T, key, value string) int64 {
	revision, err := s.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Errorf("put %q: %v", key, err)
	}
	return revision
}

func checkGuards(t *testing.T, s *session) {
	stale := s.put(t, "k", "old")
	now := s.put(t, "k", "new")
	gone := s.put(t, "gone", "v")
	s.remove(t, "gone")
	for _, tt := range []struct {
		name   string
		guards []store.Guard
		fails  *store.GuardError
	}{
		{"exact", []store.Guard{{Key: "k", Revision: now}}, nil},
		{"absent", []store.Guard{{Key: "none", Revision: 0}}, nil},
		{"deleted is absent", []store.Guard{{Key: "gone", Revision: 0}}, nil},
		{"both hold", []store.Guard{{Key: "k", Revision: now}, {Key: "none", Revision: 0}}, nil},
		{"stale", []store.Guard{{Key: "k", Revision: stale}}, &store.GuardError{Key: "k", Want: stale, Have: now}},
		{"not absent", []store.Guard{{Key: "k", Revision: 0}}, &store.GuardError{Key: "k", Want: 0, Have: now}},
		{"not there", []store.Guard{{Key: "none", Revision: now}}, &store.GuardError{Key: "none", Want: now, Have: 0}},
		{"deleted", []store.Guard{{Key: "gone", Revision: gone}}, &store.GuardError{Key: "gone", Want: gone, Have: 0}},
		{"to come", []store.Guard{{Key: "k", Revision: 1000}}, &store.GuardError{Key: "k", Want: 1000, Have: now}},
		{"first fails", []store.Guard{{Key: "k", Revision: stale}, {Key: "none", Revision: 0}}, &store.GuardError{Key: "k", Want: stale, Have: now}},
		{"second fails", []store.Guard{{Key: "k", Revision: now}, {Key: "none", Revision: 7}}, &store.GuardError{Key: "none", Want: 7, Have: 0}},
	} {
		_, err := s.Commit(t.Context(), store.Batch{Guards: tt.guards, Puts: []store.Put{{Key: "other"}}})
		got, ok := errors.AsType[*store.GuardError](err)
		switch {
		case tt.fails == nil && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.fails != nil && (!ok || *got != *tt.fails):
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.fails)
		}
	}
}

func checkIncrements(t *testing.T, s *session) {
	const workers, each = 16, 10
	increment := func() error {
		var n int
		var at int64
		r, err := s.Get(t.Context(), "counter")
		switch {
		case err == nil:
			at = r.Revision
			if n, err = strconv.Atoi(string(r.Value)); err != nil {
				return err
			}
		case !errors.Is(err, store.ErrNoKey):
			return err
		}
		_, err = s.Commit(t.Context(), store.Batch{
			Guards: []store.Guard{{Key: "counter", Revision: at}},
			Puts:   []store.Put{{Key: "counter", Value: strconv.AppendInt(nil, int64(n+1), 10)}},
		})
		return err
	}
	together(workers, func(int) {
		for done := 0; done < each; {
			err := increment()
			if err == nil {
				done++
				continue
			}
			if _, ok := errors.AsType[*store.GuardError](err); !ok {
				t.Error(err)
				return
			}
		}
	})
	if r, err := s.Get(t.Context(), "counter"); err != nil || string(r.Value) != strconv.Itoa(workers*each) {
		t.Errorf("got %s, %v, want %d", show(r), err, workers*each)
	}
}

func checkImpossible(t *testing.T, s *session) {
	put := func(keys ...string) (b store.Batch) {
		for _, key := range keys {
			b.Puts = append(b.Puts, store.Put{Key: key, Value: []byte("v")})
		}
		return b
	}
	before := s.revision(t)
	for name, b := range map[string]store.Batch{
		"put of an empty key":    put("a", ""),
		"delete of an empty key": {Puts: put("a").Puts, Deletes: []string{""}},
		"key put twice":          put("a", "b", "a"),
		"key deleted twice":      {Deletes: []string{"a", "a"}},
		"key put and deleted":    {Puts: put("a").Puts, Deletes: []string{"a"}},
		"index key put as well":  {Puts: put("a").Puts, Index: store.Index{Puts: []string{"a"}}},
		"empty index key":        {Puts: put("a").Puts, Index: store.Index{Deletes: []string{""}}},
	} {
		if _, err := s.Commit(t.Context(), b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if got := s.keys(t, "", 10); len(got) > 0 || s.revision(t) != before {
		t.Errorf("something was applied: %q", got)
	}
}

func checkAliasing(t *testing.T, s *session) {
	want := strings.Repeat("value", 10_000) // large enough not to be copied by chance
	value := []byte(want)
	b := store.Batch{Puts: []store.Put{{Key: "k", Value: value}}}
	at := s.commit(t, b)
	copy(value, "XXXXX")
	b.Puts[0].Key = "other"
	s.expect(t, "k", want, at)

	spoil := func(got []byte) {
		_ = append(got, "YYYYY"...)
		copy(got, "XXXXX")
	}
	r, err := s.Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	spoil(r.Value)
	records, _, err := s.List(t.Context(), "", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	spoil(records[0].Value)
	event, err, _ := s.watch(t, t.Context(), "", 0).next()
	if err != nil {
		t.Fatal(err)
	}
	spoil(event.Value)
	s.expect(t, "k", want, at)
	s.reopen(t)
	s.expect(t, "k", want, at)
}

// checkBounds: a batch at the bounds is applied, one beyond them is not, and index keys don't count.
func checkBounds(t *testing.T, s *session) {
	bounds := s.Bounds()
	if bounds.Operations < 128 || bounds.Bytes < store.MaxRecord+store.MaxRecord/4 {
		t.Fatalf("the bounds are %+v", bounds)
	}
	var b store.Batch
	for i := range bounds.Operations {
		b.Puts = append(b.Puts, store.Put{Key: fmt.Sprint("k", i)})
		b.Guards = append(b.Guards, store.Guard{Key: fmt.Sprint("k", i)})
		b.Index.Puts = append(b.Index.Puts, fmt.Sprint("ix/", i))
	}
	s.commit(t, b)
	if got := s.keys(t, "", 1000); len(got) != 2*bounds.Operations {
		t.Errorf("%d keys are there", len(got))
	}
	before := s.revision(t)
	large := bytes.Repeat([]byte("v"), bounds.Bytes/2)
	for name, b := range map[string]store.Batch{
		"too many puts":    {Puts: append(b.Puts, store.Put{Key: "one"})},
		"too many guards":  {Guards: append(b.Guards, store.Guard{Key: "one"}), Puts: []store.Put{{Key: "one"}}},
		"too many deletes": {Puts: b.Puts, Deletes: []string{"one"}},
		"too many bytes":   {Puts: []store.Put{{Key: "one", Value: large}, {Key: "two", Value: large}}},
	} {
		if _, err := s.Commit(t.Context(), b); err == nil || errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("%s: got %v, want an error that leaves no doubt", name, err)
		}
	}
	if got := s.revision(t); got != before {
		t.Errorf("something was applied: revision %d after %d", got, before)
	}
}

func checkIndex(t *testing.T, s *session) {
	w := s.watch(t, t.Context(), "ix/", 0)
	put := s.commit(t, store.Batch{Puts: []store.Put{{Key: "a"}}, Index: store.Index{Puts: []string{"ix/a"}}})
	s.expect(t, "ix/a", "", put)
	w.expect(t, at("ix/a=", put))
	gone := s.commit(t, store.Batch{Deletes: []string{"a"}, Index: store.Index{Deletes: []string{"ix/a", "ix/none"}}})
	w.expect(t, at("ix/a deleted", gone))
	if got := s.keys(t, "", 10); len(got) > 0 {
		t.Errorf("got keys %q", got)
	}
}
