package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// oldNode is a record as schema version 1 has it.
func oldNode(name, state, serial, label string) string {
	held := ""
	if serial != "" {
		held = fmt.Sprintf(`"serial":%q,`, serial)
	}
	return fmt.Sprintf(`{"certname":%q,"uid":"u-%s","state":%q,"owner":"ops","classification":{"parameters":{"big":12345678901234567890}},`+
		`"groups":["base"],"labels":{"team":%q},%s"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","requests":["ops r1"]}`,
		name, name, state, label, held)
}

// versionOne is a store that schema version 1 wrote, with n provisioned nodes among others.
func versionOne(t *testing.T, n int, label string) *unready {
	t.Helper()
	e := newUnready(t)
	e.schema(t, `{"version":1}`)
	puts := []store.Put{
		{Key: "node/registered", Value: []byte(oldNode("registered", "registered", "", "x"))},
		{Key: "tombstone/gone/u-gone", Value: []byte(oldNode("gone", "terminated", "00FE", "x"))},
		{Key: "group/serial", Value: []byte(`{"name":"serial","classification":{},"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z"}`)},
	}
	for i := range n {
		name := fmt.Sprintf("node%04d", i)
		puts = append(puts, store.Put{Key: "node/" + name, Value: []byte(oldNode(name, "provisioned", "00FF", label))})
	}
	for len(puts) > 0 {
		some := puts[:min(len(puts), 100)]
		_, err := e.Engine.Commit(t.Context(), store.Batch{Puts: some})
		check(t, err)
		puts = puts[len(some):]
	}
	e.commits = 0
	return e
}

// A registration of schema version 1 had one live certificate: it is the newest one now. Both
// forms are read while the store is migrated, batch by batch within the engine's bounds.
func TestOneSerialBecomesAList(t *testing.T) {
	const nodes = 1200
	e := versionOne(t, nodes, strings.Repeat("x", 10_000))
	s, err := store.Open(t.Context(), e)
	check(t, err)
	held := func() {
		t.Helper()
		for _, i := range []int{0, 1, nodes / 2, nodes - 1} {
			n, err := s.Node(t.Context(), node.Certname(fmt.Sprintf("node%04d", i)))
			check(t, err)
			equal(t, "serials", n.Serials, []node.Serial{"00FF"})
			equal(t, "groups", n.Groups, []string{"base"})
			equal(t, "a big number", fmt.Sprint(n.Classification.Parameters["big"]), "12345678901234567890")
		}
		n, err := s.Node(t.Context(), "registered")
		check(t, err)
		equal(t, "newest of none", n.Newest(), node.Serial(""))
		gone, err := s.Tombstone(t.Context(), "gone", "u-gone")
		check(t, err)
		equal(t, "serials of the tombstone", gone.Serials, []node.Serial{"00FE"})
	}
	held()
	batches := 0
	check(t, s.Migrate(t.Context(), store.Migration{Progress: func(int, string, int) { batches++; held() }}))
	if batches < 5 { // 500 at once
		t.Errorf("%d batches", batches)
	}
	held()
	recs, _, err := e.List(t.Context(), "", "", 10_000)
	check(t, err)
	for _, rec := range recs {
		if strings.Contains(string(rec.Value), `"serial":`) {
			t.Fatalf("%s is as it was: %.300s", rec.Key, rec.Value)
		}
	}
}
