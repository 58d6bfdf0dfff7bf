package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// request is a batch on its way to the committer.
type request struct {
	batch store.Batch
	lost  bool // the caller gets a store.DoubtError

	// The committer sets these fields before it closes done.
	revision int64
	err      error
	done     chan struct{}
}

// Commit implements store.Engine.
func (e *Engine) Commit(ctx context.Context, b store.Batch) (int64, error) {
	if err := errors.Join(ctx.Err(), e.Bounds().Check(b), check(b)); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	r := &request{batch: copied(b), done: make(chan struct{})}
	if n := int64(e.o.LoseEvery); n > 0 && e.commits.Add(1)%n == 0 {
		r.lost = true
	}
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return 0, fmt.Errorf("commit: %w", errClosed)
	}
	e.queue = append(e.queue, r)
	e.wake.Signal()
	e.mu.Unlock()
	select {
	case <-r.done:
	case <-ctx.Done():
		e.mu.Lock()
		defer e.mu.Unlock()
		if i := slices.Index(e.queue, r); i >= 0 {
			e.queue = slices.Delete(e.queue, i, i+1)
			return 0, fmt.Errorf("commit: %w", ctx.Err())
		}
		return 0, doubt(r, ctx.Err())
	}
	if r.lost {
		return 0, doubt(r, errors.New("the answer was lost"))
	}
	return r.revision, r.err
}

func doubt(r *request, cause error) error {
	return &store.DoubtError{Cause: cause, Settle: func(ctx context.Context) (int64, error) {
		select {
		case <-r.done:
			return r.revision, r.err
		case <-ctx.Done():
			return 0, doubt(r, ctx.Err())
		}
	}}
}

func copied(b store.Batch) store.Batch {
	b.Guards, b.Puts = slices.Clone(b.Guards), slices.Clone(b.Puts)
	for i := range b.Puts {
		b.Puts[i].Value = slices.Clone(b.Puts[i].Value)
	}
	for _, key := range b.Index.Puts {
		b.Puts = append(b.Puts, store.Put{Key: key})
	}
	b.Deletes = slices.Concat(b.Deletes, b.Index.Deletes)
	return b
}

// commitLoop applies the queued batches, one group at a time, until the engine is closed and all callers
// have an answer.
func (e *Engine) commitLoop() {
	defer close(e.ended)
	for {
		e.mu.Lock()
		for len(e.queue) == 0 && !e.closing {
			e.wake.Wait()
		}
		group := e.queue
		e.queue = nil
		if len(group) == 0 {
			close(e.changed) // wakes the watches, which then find the engine closed
			e.changed = make(chan struct{})
			e.mu.Unlock()
			return
		}
		e.apply(group)
		e.mu.Unlock()
		e.o.Committed(len(group), 0, nil)
		for _, r := range group {
			close(r.done)
		}
	}
}

// apply applies a group. Batches share a revision until a batch has a key, in a guard or otherwise, of an
// earlier batch with that revision.
func (e *Engine) apply(group []*request) {
	d := e.disk
	touched := map[string]bool{}
	next := func() {
		clear(touched)
		d.revision += 1 + d.revision%3 // revisions have gaps, as in etcd
		d.history = append(d.history, entry{revision: d.revision})
	}
	for _, r := range group {
		if r.err = d.guarded(r.batch.Guards); r.err != nil {
			continue
		}
		if r.lost && e.o.NotApplied {
			r.err = fmt.Errorf("commit: the answer was lost, and nothing was applied: %w", node.ErrUnavailable)
			continue
		}
		keys := keysOf(r.batch)
		if len(touched) == 0 || slices.ContainsFunc(keys, func(key string) bool { return touched[key] }) {
			next()
		}
		for _, key := range keys {
			touched[key] = true
		}
		touched[""] = true // marks the revision as used, even by a batch without keys
		r.revision = d.revision
		d.applyBatch(r.batch)
	}
	if len(touched) == 0 {
		return
	}
	if extra := len(d.history) - e.o.History; extra > 0 {
		d.floor = d.history[extra-1].revision
		d.history = slices.Clone(d.history[extra:])
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

func keysOf(b store.Batch) []string {
	keys := slices.Clone(b.Deletes)
	for _, p := range b.Puts {
		keys = append(keys, p.Key)
	}
	for _, g := range b.Guards {
		keys = append(keys, g.Key)
	}
	return keys
}

func (d *Disk) guarded(guards []store.Guard) error {
	for _, g := range guards {
		if have := d.records[g.Key].Revision; have != g.Revision {
			return &store.GuardError{Key: g.Key, Want: g.Revision, Have: have}
		}
	}
	return nil
}

func (d *Disk) applyBatch(b store.Batch) {
	var changes []change
	for _, p := range b.Puts {
		d.put(p.Key, p.Value, d.revision)
		changes = append(changes, change{key: p.Key})
	}
	for _, key := range b.Deletes {
		if d.remove(key) {
			changes = append(changes, change{key: key, deleted: true})
		}
	}
	if !b.Unwatched {
		last := &d.history[len(d.history)-1]
		last.changes = append(last.changes, changes...)
	}
}
