package bolt

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// A page of a watch ends with the revision that exceeds one of these limits. So neither its memory nor the
// time of its read transaction depends on the consumer.
const (
	maxPageRevisions = 1000
	maxPageEvents    = 256
	maxPageBytes     = 1 << 20
)

// page is the result of one read transaction.
type page struct {
	events []store.Event
	last   int64 // the last revision that was read
	more   bool  // the history has later revisions
}

// Watch implements store.Engine. Watch omits an event if the history has a later event of the same key. So
// an event always has the value that its revision wrote. No transaction is open while the consumer handles
// an event. All watches of a prefix share the values of events, so a consumer must not change them.
func (e *Engine) Watch(ctx context.Context, prefix string, after int64) iter.Seq2[store.Event, error] {
	return func(yield func(store.Event, error) bool) {
		t, err := e.fan.join(prefix)
		if err != nil {
			yield(store.Event{}, fmt.Errorf("watch %q: %w", prefix, err))
			return
		}
		defer e.fan.leave(t)
		for {
			if err := ctx.Err(); err != nil {
				yield(store.Event{}, err)
				return
			}
			page, news, err := e.fan.following(t, after)
			if err != nil {
				yield(store.Event{}, err)
				return
			}
			for _, event := range page.events {
				if err := ctx.Err(); err != nil {
					yield(store.Event{}, err)
					return
				}
				if !yield(event, nil) {
					return
				}
			}
			after = page.last
			if page.more {
				continue
			}
			select {
			case <-news:
			case <-ctx.Done():
			case <-e.closed:
				yield(store.Event{}, fmt.Errorf("watch %q: %w", prefix, e.errClosed()))
				return
			}
		}
	}
}

// revisionChanged returns a channel that is closed at the next change of the revision.
func (e *Engine) revisionChanged() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

// wakeFan makes the fan read the history.
func (e *Engine) wakeFan() {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.changed)
	e.changed = make(chan struct{})
}

// readPage reads the events after a revision, for the keys for which wanted returns true.
func (e *Engine) readPage(wanted func(key string) bool, after int64) (page, error) {
	p := page{last: after}
	err := e.view(func(tx *bbolt.Tx) error {
		if err := checkKept(tx, after); err != nil {
			return err
		}
		kv, cursor := tx.Bucket(bucketKV), tx.Bucket(bucketHistory).Cursor()
		revisions, size := 0, 0
		for key, entry := cursor.Seek(historyKey(after + 1)); key != nil; key, entry = cursor.Next() {
			if revisions >= maxPageRevisions || len(p.events) >= maxPageEvents || size >= maxPageBytes {
				p.more = true
				return nil
			}
			revision, err := historyRevision(key)
			if err != nil {
				return err
			}
			events, err := eventsOf(kv, wanted, revision, entry)
			if err != nil {
				return err
			}
			for _, event := range events {
				size += len(event.Value)
			}
			p.events = append(p.events, events...)
			p.last = revision
			revisions++
		}
		return nil
	})
	return p, err
}

// checkKept returns an error if the history lacks a revision after the given one.
func checkKept(tx *bbolt.Tx, after int64) error {
	var kept int64
	if key, _ := tx.Bucket(bucketHistory).Cursor().First(); key != nil {
		oldest, err := historyRevision(key)
		if err != nil {
			return err
		}
		kept = oldest - 1
	}
	if after < kept {
		return fmt.Errorf("after revision %d, history is kept after %d: %w", after, kept, node.ErrCompacted)
	}
	return nil
}

// eventsOf returns the events of one revision. eventsOf omits keys that a later revision changed again.
func eventsOf(kv *bbolt.Bucket, wanted func(key string) bool, revision int64, entry []byte) ([]store.Event, error) {
	changes, err := parseChanges(revision, entry)
	if err != nil {
		return nil, err
	}
	var events []store.Event
	for _, c := range changes {
		if !wanted(c.key) {
			continue
		}
		stored := kv.Get([]byte(c.key))
		if c.deleted {
			if stored == nil {
				events = append(events, store.Event{Key: c.key, Revision: revision, Deleted: true})
			}
			continue
		}
		if stored == nil {
			continue
		}
		at, value, err := splitRecord(c.key, stored)
		if err != nil {
			return nil, err
		}
		if at == revision {
			events = append(events, store.Event{Key: c.key, Revision: revision, Value: bytes.Clone(value)})
		}
	}
	return events, nil
}
