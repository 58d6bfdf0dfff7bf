package bolt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Limits of a group: the batches that share one transaction, and so one sync of the disk. A batch larger
// than maxGroupBytes gets its own transaction.
const (
	maxGroup      = 512
	maxGroupBytes = 16 << 20
)

// errNothing rolls back a transaction in which no batch was applied.
var errNothing = errors.New("nothing to commit")

// request is a batch on its way to the committer. A request shares no memory with the caller, who may
// return before the commit is done.
type request struct {
	guards  []store.Guard
	puts    []store.Put // with roomyValues
	deletes []string
	size    int
	silent  bool // no watch gets these changes

	// The committer sets these fields before it closes done.
	revision int64
	err      error
	done     chan struct{}

	// Only for an unknown outcome: settle closes settled when the transaction is durable.
	settled chan struct{}
	outcome func() (int64, error)
}

// answer returns the result of Commit for a request that is done.
func (e *Engine) answer(r *request) (int64, error) {
	if errors.Is(r.err, store.ErrUnknownOutcome) {
		return 0, e.doubt(r, r.err)
	}
	return r.revision, r.err
}

// doubt returns the error of a request whose outcome is not yet known.
func (e *Engine) doubt(r *request, cause error) error {
	return &store.DoubtError{Cause: cause, Settle: func(ctx context.Context) (int64, error) {
		select {
		case <-r.done:
		case <-ctx.Done():
			return 0, e.doubt(r, ctx.Err())
		}
		if !errors.Is(r.err, store.ErrUnknownOutcome) {
			return r.revision, r.err
		}
		if !e.awaitSettled(ctx, r) {
			return 0, e.doubt(r, r.err)
		}
		return r.outcome()
	}}
}

// awaitSettled waits until settle has made the transaction of the request durable. The committer settles
// only before another commit. So awaitSettled queues commits whose guard always fails.
func (e *Engine) awaitSettled(ctx context.Context, r *request) bool {
	const pause = 100 * time.Millisecond
	for {
		_, _ = e.Commit(ctx, store.Batch{Guards: []store.Guard{{Key: "", Revision: -1}}})
		select {
		case <-r.settled:
			return true
		case <-ctx.Done():
			return false
		case <-e.closed:
			return false
		case <-time.After(pause):
		}
	}
}

// newRequest copies a batch. newRequest refuses every batch that bbolt would refuse: a refused batch would
// fail its group, and so the batches of other callers.
func newRequest(b store.Batch) (*request, error) {
	r := &request{guards: slices.Clone(b.Guards), deletes: slices.Concat(b.Deletes, b.Index.Deletes), silent: b.Unwatched, done: make(chan struct{})}
	seen := make(map[string]bool, len(b.Puts)+len(b.Index.Puts)+len(b.Deletes)+len(b.Index.Deletes))
	check := func(key string) error {
		switch {
		case key == "":
			return errors.New("a key is empty")
		case len(key) > bbolt.MaxKeySize:
			return fmt.Errorf("key %.40q... has %d bytes, the most is %d", key, len(key), bbolt.MaxKeySize)
		case seen[key]:
			return fmt.Errorf("key %q stands in the batch twice", key)
		}
		seen[key] = true
		r.size += len(key)
		return nil
	}
	for _, p := range b.Puts {
		if err := check(p.Key); err != nil {
			return nil, err
		}
		if int64(len(p.Value)) > bbolt.MaxValueSize-int64(maxPrefix) {
			return nil, fmt.Errorf("value of key %q is too large: %d bytes", p.Key, len(p.Value))
		}
		r.puts = append(r.puts, store.Put{Key: p.Key, Value: roomyValue(p.Value)})
		r.size += len(p.Value)
	}
	for _, key := range b.Index.Puts {
		if err := check(key); err != nil {
			return nil, err
		}
		r.puts = append(r.puts, store.Put{Key: key, Value: roomyValue(nil)})
	}
	for _, key := range r.deletes {
		if err := check(key); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Bounds implements store.Engine. bbolt itself has no bounds. With them, one large batch can't delay the
// batches of other callers for long.
func (e *Engine) Bounds() store.Bounds {
	return store.Bounds{Operations: 10_000, Bytes: maxGroupBytes}
}

// Commit implements store.Engine. Batches that arrive during a transaction's sync share the next
// transaction. A single batch does not wait for others.
func (e *Engine) Commit(ctx context.Context, b store.Batch) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	if err := e.Bounds().Check(b); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	r, err := newRequest(b)
	if err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	if !e.enqueue(r) {
		return 0, fmt.Errorf("commit: %w", e.errClosed())
	}
	select {
	case <-r.done:
		return e.answer(r)
	case <-ctx.Done():
	}
	if e.withdraw(r) {
		return 0, fmt.Errorf("commit: %w", ctx.Err())
	}
	select {
	case <-r.done:
		return e.answer(r)
	default:
		return 0, e.doubt(r, fmt.Errorf("commit to %s: the disk has not answered: %w", e.path, ctx.Err()))
	}
}

// enqueue queues a request for the committer, unless the engine is closing.
func (e *Engine) enqueue(r *request) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return false
	}
	e.queue = append(e.queue, r)
	e.wake.Signal()
	return true
}

// withdraw removes a request from the queue, unless the committer already has it.
func (e *Engine) withdraw(r *request) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.Index(e.queue, r)
	if i < 0 {
		return false
	}
	e.queue = slices.Delete(e.queue, i, i+1)
	return true
}

// commitLoop is the committer, the only writer of the file.
func (e *Engine) commitLoop() {
	defer close(e.committed)
	for group := e.gather(); group != nil; group = e.gather() {
		e.commitGroup(group)
		for _, r := range group {
			close(r.done)
		}
	}
}

// gather waits for requests. gather returns the requests that fit into one transaction, in order of
// arrival. gather returns nil when the engine is closing and all requests are answered.
func (e *Engine) gather() []*request {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.queue) == 0 {
		if e.closing {
			return nil
		}
		e.wake.Wait()
	}
	n, size := 0, 0
	for n < len(e.queue) && n < maxGroup {
		size += e.queue[n].size
		if n > 0 && size > maxGroupBytes {
			break
		}
		n++
	}
	group := slices.Clone(e.queue[:n])
	e.queue = slices.Delete(e.queue, 0, n)
	return group
}

// commitGroup applies a group in one transaction and sets the answers.
func (e *Engine) commitGroup(group []*request) {
	if e.unsettled {
		if err := e.settle(); err != nil {
			refuse(group, fmt.Errorf("commit to %s: an earlier commit is still unsettled: %w: %w", e.path, node.ErrUnavailable, err))
			return
		}
	}
	var newest int64
	begun := time.Now()
	err := e.update(func(tx *bbolt.Tx) (err error) {
		newest, err = e.apply(tx, group)
		return err
	})
	if errors.Is(err, errNothing) {
		return
	}
	if err != nil {
		err = e.resolve(err, newest)
	}
	e.told(len(group), time.Since(begun), err)
	if errors.Is(err, store.ErrUnknownOutcome) {
		e.leaveInDoubt(group)
	}
	if err != nil {
		refuse(group, err)
		return
	}
	e.wakeFan()
}

// refuse answers all requests with an error, even those whose guard failed. A guard may fail because of
// another batch in the group, which was not applied.
func refuse(group []*request, err error) {
	for _, r := range group {
		r.revision, r.err = 0, err
	}
}

// leaveInDoubt stores the outcomes that become valid when settle has made the group's transaction durable.
func (e *Engine) leaveInDoubt(group []*request) {
	for _, r := range group {
		revision, err := r.revision, r.err
		r.settled, r.outcome = make(chan struct{}), func() (int64, error) { return revision, err }
	}
	e.inDoubt = group
}

// apply writes the batches whose guards match, in order, and returns the newest revision. Each guard sees
// the batches before it. An error fails the whole group.
func (e *Engine) apply(tx *bbolt.Tx, group []*request) (newest int64, err error) {
	before, err := readRevision(tx)
	if err != nil {
		return 0, err
	}
	newest = before
	kv, history := tx.Bucket(bucketKV), tx.Bucket(bucketHistory)
	for _, r := range group {
		if r.err = checkGuards(kv, r.guards); r.err != nil {
			continue
		}
		newest++
		r.revision = newest
		entry, err := applyRequest(kv, r)
		if err != nil {
			return 0, err
		}
		if err := history.Put(historyKey(newest), entry); err != nil {
			return 0, err
		}
	}
	if newest == before {
		return 0, errNothing
	}
	if err := trimHistory(history, newest-e.history); err != nil {
		return 0, err
	}
	return newest, writeRevision(tx, newest)
}

func checkGuards(kv *bbolt.Bucket, guards []store.Guard) error {
	for _, g := range guards {
		var have int64
		if stored := kv.Get([]byte(g.Key)); stored != nil {
			var err error
			if have, _, err = splitRecord(g.Key, stored); err != nil {
				return fmt.Errorf("commit: %w: %w", node.ErrUnavailable, err)
			}
		}
		if have != g.Revision {
			return &store.GuardError{Key: g.Key, Want: g.Revision, Have: have}
		}
	}
	return nil
}

// applyRequest writes a batch and returns its entry in the history.
func applyRequest(kv *bbolt.Bucket, r *request) (entry []byte, err error) {
	entry = []byte{}
	for _, p := range r.puts {
		if err := kv.Put([]byte(p.Key), prefixed(p.Value, r.revision)); err != nil {
			return nil, err
		}
		if !r.silent {
			entry = appendChange(entry, change{key: p.Key})
		}
	}
	for _, key := range r.deletes {
		if kv.Get([]byte(key)) == nil {
			continue // an absent key causes no event
		}
		if err := kv.Delete([]byte(key)); err != nil {
			return nil, err
		}
		if !r.silent {
			entry = appendChange(entry, change{key: key, deleted: true})
		}
	}
	return entry, nil
}

// trimHistory deletes the entries up to a revision. Each iteration starts at the first entry, as a bbolt
// cursor skips an entry after a Delete.
func trimHistory(history *bbolt.Bucket, upTo int64) error {
	cursor := history.Cursor()
	for key, _ := cursor.First(); key != nil; key, _ = cursor.First() {
		revision, err := historyRevision(key)
		if err != nil {
			return err
		}
		if revision > upTo {
			return nil
		}
		if err := cursor.Delete(); err != nil {
			return err
		}
	}
	return nil
}
