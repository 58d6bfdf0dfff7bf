package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	bbolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Reader reads a store that no process has open for writing. Reader has a shared lock until Close, so a
// daemon that starts meanwhile waits. All methods may be called concurrently.
type Reader struct {
	path string
	db   *bbolt.DB
}

var _ store.Reader = (*Reader)(nil)

// OpenReader opens the store at path for reading. OpenReader takes milliseconds for any size, and never
// creates or changes the file. The error wraps fs.ErrNotExist if there is no file, and ErrLocked if a
// daemon has the file open during the whole timeout. With timeout 0, OpenReader tries once.
func OpenReader(path string, timeout time.Duration) (*Reader, error) {
	db, _, err := openFile(path, timeout, true)
	if err != nil {
		return nil, fmt.Errorf("open store %s for reading: %w", path, err)
	}
	return &Reader{path: path, db: db}, nil
}

// Get implements store.Reader.
func (r *Reader) Get(ctx context.Context, key string) (store.Record, error) {
	return get(ctx, r.view, key)
}

// List implements store.Reader.
func (r *Reader) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, int64, error) {
	return list(ctx, r.view, prefix, after, limit)
}

// Close releases the file. Later calls return an error that wraps node.ErrUnavailable.
func (r *Reader) Close() error {
	if err := r.db.Close(); err != nil {
		return fmt.Errorf("close store %s: %w", r.path, err)
	}
	return nil
}

func (r *Reader) view(fn func(*bbolt.Tx) error) error { return view(r.db, r.path, fn) }

// view runs fn in a read transaction, and returns fn's error unchanged. If the store can't be read, the
// error wraps node.ErrUnavailable. On a damaged page bbolt panics or faults. view returns that as an
// error, so that the daemon can still serve the other nodes.
func view(db *bbolt.DB, path string, fn func(*bbolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("store %s is damaged: %v: %w", path, p, node.ErrUnavailable)
		}
	}()
	err = db.View(fn)
	switch {
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return fmt.Errorf("store %s is closed: %w", path, node.ErrUnavailable)
	case errors.Is(err, berrors.ErrInvalidMapping):
		return fmt.Errorf("read store %s: %w: %w", path, node.ErrUnavailable, err)
	}
	return err
}

type viewer func(fn func(*bbolt.Tx) error) error

func get(ctx context.Context, view viewer, key string) (record store.Record, err error) {
	if err := ctx.Err(); err != nil {
		return store.Record{}, err
	}
	err = view(func(tx *bbolt.Tx) error {
		stored := tx.Bucket(bucketKV).Get([]byte(key))
		if stored == nil {
			return store.ErrNoKey
		}
		record, err = parseRecord(key, stored)
		return err
	})
	if err != nil {
		return store.Record{}, fmt.Errorf("get %q: %w", key, err)
	}
	return record, nil
}

func list(ctx context.Context, view viewer, prefix, after string, limit int) (records []store.Record, revision int64, err error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	if limit <= 0 {
		return nil, 0, fmt.Errorf("list %q: limit is %d, must be above 0", prefix, limit)
	}
	err = view(func(tx *bbolt.Tx) error {
		if revision, err = readRevision(tx); err != nil {
			return err
		}
		cursor := tx.Bucket(bucketKV).Cursor()
		key, stored := cursor.Seek([]byte(max(prefix, after)))
		if after != "" && string(key) == after {
			key, stored = cursor.Next()
		}
		for ; key != nil && bytes.HasPrefix(key, []byte(prefix)) && len(records) < limit; key, stored = cursor.Next() {
			record, err := parseRecord(string(key), stored)
			if err != nil {
				return err
			}
			records = append(records, record)
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
	}
	return records, revision, nil
}
