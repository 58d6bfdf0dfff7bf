package memory

import (
	"errors"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/storetest"
)

func TestEngine(t *testing.T) {
	disks := map[string]*Disk{}
	storetest.Run(t, storetest.Subject{History: storetest.MinHistory, Open: func(_ *testing.T, dir string) store.Engine {
		if disks[dir] == nil {
			disks[dir] = NewDisk()
		}
		return Open(disks[dir], Options{History: storetest.MinHistory})
	}})
}

// A lost answer leaves a doubt that can be settled, whether the commit was applied or not.
func TestLostAnswers(t *testing.T) {
	for _, notApplied := range []bool{false, true} {
		e := Open(NewDisk(), Options{LoseEvery: 1, NotApplied: notApplied})
		defer e.Close()
		_, err := e.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: "k", Value: []byte("v")}}})
		doubt, ok := errors.AsType[*store.DoubtError](err)
		if !ok || !errors.Is(err, store.ErrUnknownOutcome) || !errors.Is(err, node.ErrUnavailable) {
			t.Fatalf("got %v, want a DoubtError", err)
		}
		revision, err := doubt.Settle(t.Context())
		got, missing := e.Get(t.Context(), "k")
		switch {
		case notApplied && (!errors.Is(err, node.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome) || !errors.Is(missing, store.ErrNoKey)):
			t.Errorf("not applied: the outcome is %v, get gives %v", err, missing)
		case !notApplied && (err != nil || got.Revision != revision):
			t.Errorf("applied: the outcome is %d, %v; get gives revision %d, %v", revision, err, got.Revision, missing)
		}
	}
}
