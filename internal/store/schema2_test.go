package store_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/enginetest"
)

// A store of version 1 has a mark a group. Version 2 knows the sets of groups, with an index of their
// nodes. A step that was cut short runs again.
func TestSetsOfVersion1(t *testing.T) {
	e := enginetest.Open(t, nil)
	put := func(key, value string) {
		t.Helper()
		b := store.Batch{Puts: []store.Put{{Key: key, Value: []byte(value)}}}
		for lost := true; lost; { // the engine loses answers
			_, err := e.Commit(t.Context(), b)
			if lost = errors.Is(err, store.ErrUnknownOutcome); !lost {
				check(t, err)
			}
		}
	}
	put("schema", `{"version":1}`)
	for i := range 300 {
		put(fmt.Sprintf("node/n%03d", i), fmt.Sprintf(`{"certname":"n%03d","groups":["a","g%d"]}`, i, i%150))
		put(fmt.Sprintf("mark/group-use/g%d", i%150), "")
	}
	put("node/none", `{"certname":"none"}`)
	put("mark/set/a,g7", "") // as of a step that was cut short
	s, err := store.New(t.Context(), e)
	check(t, err)
	equal(t, "sets", len(collect(t, s.Sets(t.Context()))), 150)
	set, known, err := s.Set(t.Context(), []string{"a", "g7"})
	check(t, err)
	equal(t, "known", known, true)
	equal(t, "nodes of a set", collect(t, s.SetMembers(t.Context(), set)), []node.Certname{"n007", "n157"})
	left, _, err := e.List(t.Context(), "mark/group-use/", "", 1)
	check(t, err)
	equal(t, "marks of version 1", len(left), 0)
}
