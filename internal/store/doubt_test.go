package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/enginetest"
	"github.com/espm-project/espm/internal/store/memory"
)

// hangingDisk is a store whose disk hangs at each commit, from its first call on until release.
func hangingDisk(t *testing.T) (f *fixture, hang, release func()) {
	t.Helper()
	gate := make(chan struct{}, 1)
	engine := enginetest.Open(t, func(int, time.Duration, error) {
		gate <- struct{}{}
		<-gate
	})
	s, err := store.New(t.Context(), engine)
	check(t, err)
	return &fixture{s, engine, t}, func() { gate <- struct{}{} }, func() { <-gate }
}

func TestCommitIsBounded(t *testing.T) {
	f, hang, release := hangingDisk(t)
	f.Bound = 300 * time.Millisecond
	hang()
	c := store.NewChange()
	c.Unaudited()
	c.PutNode(nil, node.Node{Certname: "a.test", UID: "1"})
	_, doubt := f.Commit(t.Context(), c)
	if !errors.Is(doubt, store.ErrUnknownOutcome) || !errors.Is(doubt, node.ErrUnavailable) {
		t.Fatalf("the disk hangs: got %v, want ErrUnknownOutcome and ErrUnavailable", doubt)
	}
	if _, err := f.Settle(t.Context(), doubt); !errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("settling while the disk hangs: got %v, want ErrUnknownOutcome", err)
	}

	err := f.SetENC(t.Context(), store.ENCSettings{})
	if !errors.Is(err, node.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("behind it: got %v, want ErrUnavailable and no doubt", err)
	}

	release()
	f.Bound = time.Minute
	rev, err := f.Settle(t.Context(), doubt)
	check(t, err)
	equal(t, "the revision of the node", f.node("a.test").Revision, rev)
	if _, err := f.ENC(t.Context()); !errors.Is(err, store.ErrNoKey) {
		t.Errorf("a commit that was given up was made: %v", err)
	}
}

func TestSettleOfAnErrorWithoutDoubt(t *testing.T) {
	f := newFixture(t)
	if _, err := f.Settle(t.Context(), errBroken); err != errBroken {
		t.Errorf("got %v, want %v", err, errBroken)
	}
}

// Every commit of the package goes through Store.commit, where it gets its bound.
func TestOneDoor(t *testing.T) {
	files := must(filepath.Glob("*.go"))(t)
	calls := 0
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			text := string(must(os.ReadFile(file))(t))
			calls += strings.Count(text, "engine.Commit(") + strings.Count(text, " e.Commit(")
		}
	}
	if calls != 1 {
		t.Errorf("the engine's Commit is called in %d places, want 1", calls)
	}
}

// An answer that was lost is settled within the bound: the caller gets the outcome, and no doubt.
func TestLostAnswerIsSettled(t *testing.T) {
	for _, notApplied := range []bool{false, true} {
		disk := memory.NewDisk()
		made := memory.Open(disk, memory.Options{})
		must(store.New(t.Context(), made))(t)
		check(t, made.Close())
		engine := memory.Open(disk, memory.Options{LoseEvery: 1, NotApplied: notApplied})
		s := must(store.New(t.Context(), engine))(t)
		err := s.SetENC(t.Context(), store.ENCSettings{UnknownNodes: "fail"})
		got, readErr := s.ENC(t.Context())
		switch {
		case !notApplied && (err != nil || got.UnknownNodes != "fail"):
			t.Errorf("applied: got %v; the settings are %+v, %v", err, got, readErr)
		case notApplied && (!errors.Is(err, node.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome) || !errors.Is(readErr, store.ErrNoKey)):
			t.Errorf("not applied: got %v, want ErrUnavailable and no doubt; the settings are %+v, %v", err, got, readErr)
		}
		check(t, engine.Close())
	}
}
