// Package store has espm's records: their keys, their encoding, their indexes and the schema version, over a small
// ordered key-value interface. Engines are sub-packages. Each engine passes the suite storetest.
package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// Engine is an ordered key-value store with one global revision. Each record
// carries the revision that last changed it. A commit's revision is greater
// than that of every commit that returned before it began. Commits that are
// under way at once may share a revision. Revisions may have gaps. Keys are
// ordered bytewise. All methods may be called at once.
//
// An engine that can't answer (disk full, closed, no quorum) returns an error
// that wraps node.ErrUnavailable. Nothing of the call has been applied then,
// unless the error is a *DoubtError.
type Engine interface {
	Reader

	// Commit applies puts and deletes as one, if every guard holds, and
	// returns the new revision. The commit survives power loss when it returns.
	// A guard that does not hold gives a *GuardError, and nothing is applied.
	// Deleting an absent key is no error. A key may stand in Puts, Deletes or Index
	// once. Concurrent commits share an fsync. Cancelling ctx stops the
	// waiting, not a commit that is already under way; the error is a
	// *DoubtError then.
	Commit(ctx context.Context, b Batch) (revision int64, err error)

	// Bounds says how much one commit may hold. It never changes. A larger
	// batch is refused, and nothing of it is applied.
	Bounds() Bounds

	// Watch yields what was committed to keys with the prefix after the
	// revision, in order of revision. It ends when ctx is done (the last error
	// is ctx.Err()) or when the consumer stops. It has no queue: a slow consumer
	// reads from the history. If after is older than the history, or becomes so,
	// Watch yields node.ErrCompacted, and the consumer must list again. The
	// history survives a restart. Watch waits for a revision that does not exist yet.
	Watch(ctx context.Context, prefix string, after int64) iter.Seq2[Event, error]

	// Close ends the engine after the commits under way; it is not needed for durability.
	Close() error
}

// Reader is the part of an Engine that a read-only opening has as well.
type Reader interface {
	// Get returns the record of a key; ErrNoKey if there is none.
	Get(ctx context.Context, key string) (Record, error)

	// List returns up to limit records (limit > 0) whose key has the prefix
	// and comes after the key given (exclusive; empty: from the start), in
	// order of key, and the store's revision they were all read at.
	List(ctx context.Context, prefix, after string, limit int) ([]Record, int64, error)
}

// Record is a key's value and the revision that last changed it. The value
// belongs to the caller.
type Record struct {
	Key      string
	Value    []byte
	Revision int64
}

// Batch is a set of changes that are applied as one or not at all.
type Batch struct {
	Guards  []Guard
	Puts    []Put
	Deletes []string
	Index   Index

	// Unwatched leaves the changes out of the history, so no watch has events of
	// them. It is for keys that are written often and that nobody watches.
	Unwatched bool
}

// Bounds is what one batch may hold. Index keys don't count.
type Bounds struct {
	Operations int // guards; and, counted apart, puts and deletes together
	Bytes      int // of keys and values, at least MaxRecord and a quarter
}

// Check returns an error that says how a batch is beyond the bounds.
func (b Bounds) Check(batch Batch) error {
	size := 0
	for _, p := range batch.Puts {
		size += len(p.Key) + len(p.Value)
	}
	for _, key := range batch.Deletes {
		size += len(key)
	}
	for _, g := range batch.Guards {
		size += len(g.Key)
	}
	switch n := max(len(batch.Guards), len(batch.Puts)+len(batch.Deletes)); {
	case n > b.Operations:
		return fmt.Errorf("the batch has %d operations, the most that the store takes in one commit is %d", n, b.Operations)
	case size > b.Bytes:
		return fmt.Errorf("the batch has %d bytes, the most that the store takes in one commit is %d", size, b.Bytes)
	}
	return nil
}

// Guard states the revision that a key must have; 0: the key must be absent.
type Guard struct {
	Key      string
	Revision int64
}

// Put sets a key.
type Put struct {
	Key   string
	Value []byte
}

// Event is a change of a key at Revision. Value is the key's value when the
// event is read; if the key was deleted, Deleted is set and Value is nil.
// Watches share the value, so nobody may change it.
// Earlier values may be skipped, the last one never is.
type Event struct {
	Key      string
	Revision int64
	Value    []byte
	Deleted  bool
}

// ErrNoKey is returned by Get where the key is absent.
var ErrNoKey = errors.New("no such key")

// GuardError says which guard failed. Have is the revision found, 0 for absent.
type GuardError struct {
	Key        string
	Want, Have int64
}

func (e *GuardError) Error() string {
	return fmt.Sprintf("key %q is at revision %d, not %d", e.Key, e.Have, e.Want)
}
