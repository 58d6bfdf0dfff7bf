package bolt

import (
	"context"
	"fmt"
	"io"

	bbolt "go.etcd.io/bbolt"
)

// Snapshot writes the file as it is at one revision, for OpenReader to open. It holds a read
// transaction meanwhile, so w should be as fast as a disk: pages that are
// replaced meanwhile can't be used again, and the file grows.
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

// cancellable is a writer that fails once ctx is done.
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

// Check reads the whole file and returns what is not as bbolt would have it; nil: it is
// sound. It is not for a daemon: on some damage bbolt panics in a goroutine of its own.
func (r *Reader) Check() error {
	return r.view(func(tx *bbolt.Tx) error {
		var first error
		for err := range tx.Check() { // to its end, or its goroutine would stay
			if first == nil {
				first = fmt.Errorf("store %s is damaged: %w", r.path, err)
			}
		}
		return first
	})
}
