package store_test

import "testing"

func TestAnswers(t *testing.T) {
	f := newFixture(t)
	before, err := f.Revision(t.Context())
	check(t, err)
	check(t, f.Answers(t.Context()))
	if after, err := f.Revision(t.Context()); err != nil || after != before {
		t.Errorf("asking wrote to the store: revision %d, was %d, %v", after, before, err)
	}
	check(t, f.engine.Close())
	if err := f.Answers(t.Context()); err == nil {
		t.Error("a closed store answers")
	}
}
