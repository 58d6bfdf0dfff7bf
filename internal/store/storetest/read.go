package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/espm-project/espm/internal/store"
)

var readChecks = []check{
	{"get of an absent key", func(t *testing.T, s *session) {
		for _, key := range []string{"absent", "", "\xff"} {
			if r, err := s.Get(t.Context(), key); !errors.Is(err, store.ErrNoKey) {
				t.Errorf("get %q: got %s, %v, want ErrNoKey", key, show(r), err)
			}
		}
	}},
	{"get returns what was put", func(t *testing.T, s *session) {
		for i, value := range []string{"v", "", " ", "7 spaced", "{\"a\": 1}\n", "\x00\xff"} {
			key := fmt.Sprint("key", i)
			s.expect(t, key, value, s.put(t, key, value))
		}
	}},
	{"keys are any bytes", func(t *testing.T, s *session) {
		for _, key := range oddKeys {
			s.expect(t, key, "v"+key, s.put(t, key, "v"+key))
		}
		if got := s.keys(t, "", 3); !slices.Equal(got, oddKeys) {
			t.Errorf("list: got %q, want %q", got, oddKeys)
		}
	}},
	{"list of an empty store", func(t *testing.T, s *session) {
		records, revision, err := s.List(t.Context(), "", "", 10)
		if err != nil || len(records) != 0 || revision < 0 {
			t.Errorf("got %v at %d, %v, want nothing", records, revision, err)
		}
	}},
	{"list refuses a limit below one", func(t *testing.T, s *session) {
		for _, limit := range []int{0, -1} {
			if _, _, err := s.List(t.Context(), "", "", limit); err == nil {
				t.Errorf("limit %d: no error", limit)
			}
		}
	}},
	{"list returns records and the revision", func(t *testing.T, s *session) {
		s.put(t, "b", "1")
		two := s.put(t, "a", "2")
		three := s.put(t, "b", "3")
		four := s.remove(t, "none")
		records, revision, err := s.List(t.Context(), "", "", 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) != 2 || show(records[0]) != at(`"a"="2"`, two) || show(records[1]) != at(`"b"="3"`, three) || revision < four {
			t.Errorf("got %v at %d", records, revision)
		}
	}},
	{"list by prefix", checkPrefix},
	{"list pages", checkPaging},
}

// oddKeys are in order.
var oddKeys = []string{"\x00", "\n", " ", "\"quoted\"", "+", "-", "a", "a\x00", "a\xff", "b", "é", "\xff", "\xff\x00", "\xff\xff"}

func checkPrefix(t *testing.T, s *session) {
	for _, key := range oddKeys {
		s.put(t, key, "v")
	}
	s.put(t, "gone", "v")
	s.remove(t, "gone")
	for _, tt := range []struct {
		prefix, after string
		want          []string
	}{
		{"", "", oddKeys},
		{"a", "", []string{"a", "a\x00", "a\xff"}},
		{"a", "a", []string{"a\x00", "a\xff"}},
		{"a", "A", []string{"a", "a\x00", "a\xff"}},
		{"a", "a\x01", []string{"a\xff"}},
		{"a", "a\xff", nil},
		{"a", "a\xff\xff\xff", nil},
		{"a", "b", nil},
		{"\xff", "", []string{"\xff", "\xff\x00", "\xff\xff"}},
		{"\xff", "\xff\x00", []string{"\xff\xff"}},
		{"\xff", "\xff\xff", nil},
		{"\xff\xff", "", []string{"\xff\xff"}},
		{"\xff\xff\xff", "", nil},
		{"", "\xff", []string{"\xff\x00", "\xff\xff"}},
		{"", "\xfe", []string{"\xff", "\xff\x00", "\xff\xff"}},
		{"gone", "", nil},
		{"none", "", nil},
	} {
		records, _, err := s.List(t.Context(), tt.prefix, tt.after, 100)
		if err != nil {
			t.Fatalf("list %q after %q: %v", tt.prefix, tt.after, err)
		}
		var got []string
		for _, r := range records {
			got = append(got, r.Key)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("list %q after %q: got %q, want %q", tt.prefix, tt.after, got, tt.want)
		}
	}
}

func checkPaging(t *testing.T, s *session) {
	var puts []store.Put
	var want []string
	for i := range 250 {
		key := fmt.Sprintf("page/%03d", i)
		want = append(want, key)
		puts = append(puts, store.Put{Key: key, Value: []byte(key)})
	}
	slices.Reverse(puts)
	for some := range slices.Chunk(append(puts, store.Put{Key: "pag"}, store.Put{Key: "page0"}), s.Bounds().Operations) {
		s.commit(t, store.Batch{Puts: some})
	}
	for _, limit := range []int{1, 7, 125, 249, 250, 251, 1 << 30} {
		if got := s.keys(t, "page/", limit); !slices.Equal(got, want) {
			t.Errorf("limit %d: got %d keys: %q", limit, len(got), got)
		}
	}
}
