package bolt

import (
	"context"
	"fmt"
	"io"

	bbolt "go.etcd.io/bbolt"
)

// Snapshot writes the file at one revision; OpenReader can open the copy. Snapshot keeps a read
// transaction open. Until it ends, replaced pages can't be reused and the file grows, so w should be as
// fast as a disk.
func (e *Engine) Snapshot(ctx context.Context, w io.Writer) error {
	err := e.view(func(tx *bbolt.Tx) error {
		_, err := tx.WriteTo(cancellable{ctx, w})
		return err
	})
	if err != nil {
		return fmt.Errorf("copy store %s: %w", e.path, err)
	}
	return nil
}

type cancellable struct {
	ctx context.Context
	w   io.Writer
}

func (c cancellable) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// Check reads the whole file and returns the first damage that bbolt finds, or nil. Don't call Check in a
// daemon: on some damage, bbolt panics in its own goroutine, which ends the process.
func (r *Reader) Check() error {
	return r.view(func(tx *bbolt.Tx) error {
		var first error
		for err := range tx.Check() { // without an early exit, which would leak bbolt's goroutine
			if first == nil {
				first = fmt.Errorf("store %s is damaged: %w", r.path, err)
			}
		}
		return first
	})
}
