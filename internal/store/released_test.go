package store_test

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/internal/store/storetest"
)

// What the first release wrote is read before and after its migration, and says the same.
func TestReleased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	storetest.Released(t, path)
	engine, err := bolt.Open(path, bolt.Options{})
	check(t, err)
	t.Cleanup(func() { engine.Close() })
	check(t, storetest.Grow(t.Context(), engine, 100))
	s, err := store.Open(t.Context(), engine)
	check(t, err)
	before := contents(t, s)
	check(t, s.Migrate(t.Context(), store.Migration{}))
	if after := contents(t, s); !reflect.DeepEqual(before, after) {
		t.Errorf("before:\n%v\nafter:\n%v", before, after)
	}
	if outdated, err := s.Outdated(t.Context()); err != nil || outdated {
		t.Errorf("outdated %v, %v", outdated, err)
	}
}

// contents are the records of a store by kind, as the domain has them: without revisions.
func contents(t *testing.T, s *store.Store) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	add := func(kind string, record any) {
		text, err := json.Marshal(record)
		check(t, err)
		all[kind] = append(all[kind], string(text))
	}
	nodes, err := s.Nodes(t.Context(), store.NodeFilter{}, "", 1000)
	check(t, err)
	for _, n := range nodes.Items {
		add("node", n)
		certs, err := s.CertificatesOfLife(t.Context(), n.Certname, n.UID)
		check(t, err)
		for _, c := range certs {
			add("certificate", c)
		}
	}
	for group, want := range map[string]int{"base": 101, "web": 102, "db": 1} {
		g, err := s.Group(t.Context(), group)
		check(t, err)
		add("group", g)
		members := 0
		for _, err := range s.Members(t.Context(), group) {
			check(t, err)
			members++
		}
		if members != want {
			t.Errorf("group %s has %d members, want %d", group, members, want)
		}
	}
	gone, err := s.LastTombstone(t.Context(), "gone.example.com", func(node.Node) bool { return true })
	check(t, err)
	add("tombstone", gone)
	revocations, err := s.Revocations(t.Context(), store.RevocationFilter{}, "", 100)
	check(t, err)
	for _, r := range revocations.Items {
		add("revocation", r)
	}
	token, err := s.Token(t.Context(), "ci")
	check(t, err)
	add("token", token)
	want := map[string]int{"node": 105, "certificate": 4, "group": 3, "tombstone": 1, "revocation": 2, "token": 1}
	for kind, n := range want {
		slices.Sort(all[kind])
		if len(all[kind]) != n {
			t.Errorf("%d records of %s, want %d", len(all[kind]), kind, n)
		}
	}
	return all
}
