// Package memory is a store engine for tests. The engine writes no file. The engine has the properties of
// etcd that bbolt does not have: at most 128 operations in a commit, commits that share a revision, gaps
// between revisions, and lost answers.
package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Disk has the data of an engine, also after the engine is closed. Only one engine at a time may use a
// Disk.
type Disk struct {
	keys     []string // sorted
	records  map[string]store.Record
	revision int64
	history  []entry
	floor    int64 // the history has only changes after this revision
}

// NewDisk returns a Disk without records.
func NewDisk() *Disk { return &Disk{records: map[string]store.Record{}} }

// Options of Open. The zero value is an engine whose answers are never lost.
type Options struct {
	History int // revisions kept for watches; default 10,000

	// LoseEvery makes every LoseEvery-th commit lose its answer; 0: none. With NotApplied, these commits
	// are not applied.
	LoseEvery  int
	NotApplied bool

	// Committed, if not nil, is called after each group of commits, before their callers get their
	// answers.
	Committed func(batches int, took time.Duration, err error)
}

// Engine is a store.Engine in memory. All methods may be called concurrently.
type Engine struct {
	o       Options
	commits atomic.Int64

	mu      sync.Mutex
	disk    *Disk
	queue   []*request
	wake    *sync.Cond
	closing bool
	changed chan struct{} // closed and replaced after each change of the revision
	ended   chan struct{} // closed when the committer has ended
}

var _ store.Engine = (*Engine)(nil)

// Open returns an engine on a Disk that no other engine uses.
func Open(disk *Disk, o Options) *Engine {
	if o.History <= 0 {
		o.History = 10_000
	}
	if o.Committed == nil {
		o.Committed = func(int, time.Duration, error) {}
	}
	e := &Engine{o: o, disk: disk, changed: make(chan struct{}), ended: make(chan struct{})}
	e.wake = sync.NewCond(&e.mu)
	go e.commitLoop()
	return e
}

// Bounds implements store.Engine. The operations are etcd's default limit. The bytes are below etcd's
// default limit of a request.
func (e *Engine) Bounds() store.Bounds {
	return store.Bounds{Operations: 128, Bytes: store.MaxRecord + store.MaxRecord/4}
}

// Close implements store.Engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closing = true
	e.wake.Signal()
	e.mu.Unlock()
	<-e.ended
	return nil
}

// Get implements store.Reader.
func (e *Engine) Get(ctx context.Context, key string) (store.Record, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.readable(ctx); err != nil {
		return store.Record{}, fmt.Errorf("get %q: %w", key, err)
	}
	r, ok := e.disk.records[key]
	if !ok {
		return store.Record{}, fmt.Errorf("get %q: %w", key, store.ErrNoKey)
	}
	return clone(r), nil
}

// List implements store.Reader.
func (e *Engine) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, int64, error) {
	if limit <= 0 {
		return nil, 0, fmt.Errorf("list %q: the limit is %d", prefix, limit)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.readable(ctx); err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
	}
	from, _ := slices.BinarySearch(e.disk.keys, max(prefix, after))
	var found []store.Record
	for _, key := range e.disk.keys[from:] {
		if !strings.HasPrefix(key, prefix) || len(found) == limit {
			break
		}
		if after == "" || key > after {
			found = append(found, clone(e.disk.records[key]))
		}
	}
	return found, e.disk.revision, nil
}

func (e *Engine) readable(ctx context.Context) error {
	if e.closing {
		return errClosed
	}
	return ctx.Err()
}

var errClosed = fmt.Errorf("the store is closed: %w", node.ErrUnavailable)

func clone(r store.Record) store.Record {
	r.Value = append([]byte{}, r.Value...)
	return r
}

func (d *Disk) put(key string, value []byte, revision int64) {
	if _, ok := d.records[key]; !ok {
		at, _ := slices.BinarySearch(d.keys, key)
		d.keys = slices.Insert(d.keys, at, key)
	}
	d.records[key] = store.Record{Key: key, Value: value, Revision: revision}
}

// remove reports whether the key existed.
func (d *Disk) remove(key string) bool {
	if _, ok := d.records[key]; !ok {
		return false
	}
	at, _ := slices.BinarySearch(d.keys, key)
	d.keys = slices.Delete(d.keys, at, at+1)
	delete(d.records, key)
	return true
}

// check refuses batches that every engine must refuse.
func check(b store.Batch) error {
	seen := map[string]bool{}
	keys := slices.Concat(b.Deletes, b.Index.Puts, b.Index.Deletes)
	for _, p := range b.Puts {
		keys = append(keys, p.Key)
	}
	for _, key := range keys {
		if key == "" {
			return errors.New("a key is empty")
		}
		if seen[key] {
			return fmt.Errorf("key %q stands in the batch twice", key)
		}
		seen[key] = true
	}
	return nil
}
