package store_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// oldNode is a record as schema version 1 has it.
func oldNode(name, state, serial string) string {
	held := ""
	if serial != "" {
		held = fmt.Sprintf(`"serial":%q,`, serial)
	}
	return fmt.Sprintf(`{"certname":%q,"uid":"u-%s","state":%q,"owner":"ops","classification":{"parameters":{"big":12345678901234567890}},`+
		`"groups":["base"],"labels":{"team":"x"},%s"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","requests":["ops r1"]}`,
		name, name, state, held)
}

// versionOne is a store that schema version 1 wrote, with n provisioned nodes among others.
func versionOne(t *testing.T, n int) *unready {
	t.Helper()
	e := newUnready(t)
	e.schema(t, `{"version":1}`)
	puts := []store.Put{
		{Key: "node/registered", Value: []byte(oldNode("registered", "registered", ""))},
		{Key: "tombstone/gone/u-gone", Value: []byte(oldNode("gone", "terminated", "00FE"))},
		{Key: "group/serial", Value: []byte(`{"name":"serial","classification":{},"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z"}`)},
	}
	for i := range n {
		name := fmt.Sprintf("node%04d", i)
		puts = append(puts, store.Put{Key: "node/" + name, Value: []byte(oldNode(name, "provisioned", "00FF"))})
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

// A registration of schema version 1 had one live certificate: it is the newest one now.
func TestOneSerialBecomesAList(t *testing.T) {
	e := versionOne(t, 3)
	s, err := store.New(t.Context(), e)
	check(t, err)
	for name, want := range map[node.Certname][]node.Serial{"node0000": {"00FF"}, "node0002": {"00FF"}, "registered": nil} {
		n, err := s.Node(t.Context(), name)
		check(t, err)
		equal(t, "serials", n.Serials, want)
		equal(t, "groups", n.Groups, []string{"base"})
		equal(t, "a big number", fmt.Sprint(n.Classification.Parameters["big"]), "12345678901234567890")
	}
	gone, err := s.Tombstone(t.Context(), "gone", "u-gone")
	check(t, err)
	equal(t, "serials of the tombstone", gone.Serials, []node.Serial{"00FE"})
	for _, key := range []string{"node/node0001", "tombstone/gone/u-gone"} {
		rec, err := e.Get(t.Context(), key)
		check(t, err)
		if old, err := store.HasOneSerial(rec); old || err != nil {
			t.Errorf("%s is as it was: %s, %v", key, rec.Value, err)
		}
	}
}

// A migration that is cut short goes on where it was; meanwhile both forms are read.
func TestListSerialsResumes(t *testing.T) {
	const nodes = 500
	e := versionOne(t, nodes)
	bounds := e.Bounds()
	small := &smallEngine{unready: e, bounds: store.Bounds{Operations: 50, Bytes: bounds.Bytes}}
	ctx, cancel := context.WithCancel(t.Context())
	small.commit = func(n int) {
		if n == 4 {
			cancel()
		}
	}
	if _, err := store.New(ctx, small); err == nil {
		t.Fatal("it went on without its context")
	}
	if version, err := store.SchemaVersion(t.Context(), e); err != nil || version != 1 {
		t.Fatalf("version %d, %v", version, err)
	}
	v := store.ViewOf(e)
	for i := range nodes {
		n, err := v.Node(t.Context(), node.Certname(fmt.Sprintf("node%04d", i)))
		check(t, err)
		equal(t, "newest", n.Newest(), node.Serial("00FF"))
	}
	before := small.commits
	small.commit = nil
	_, err := store.New(t.Context(), small)
	check(t, err)
	if more := small.commits - before; more < 6 || more > 9 { // the rest, tombstones and the version
		t.Errorf("%d commits for the rest", more)
	}
}

// smallEngine has tight bounds, and tells of each commit before it is made.
type smallEngine struct {
	*unready
	bounds store.Bounds
	commit func(n int)
}

func (e *smallEngine) Bounds() store.Bounds { return e.bounds }

func (e *smallEngine) Commit(ctx context.Context, b store.Batch) (int64, error) {
	if e.commit != nil {
		e.commit(e.commits + 1)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := e.bounds.Check(b); err != nil {
		return 0, err
	}
	return e.unready.Commit(ctx, b)
}
