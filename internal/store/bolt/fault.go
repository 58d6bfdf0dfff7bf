package bolt

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// resolve finds the outcome of a transaction that bbolt calls failed; nil if it is durable. bbolt writes the pages and
// syncs; then it writes the meta page, which makes them valid, and syncs again. Before the meta page only free pages
// are written, and bbolt rolls back. If the second sync failed, the meta page is in the kernel's cache: bbolt and
// other processes see the transaction from now on, while the disk may not have it. A read of the new revision shows
// that.
func (e *Engine) resolve(cause error, newest int64) error {
	failed := fmt.Errorf("commit to %s: %w: %w", e.path, node.ErrUnavailable, withErrno(cause))
	if newest == 0 {
		return failed
	}
	var have int64
	err := e.view(func(tx *bbolt.Tx) (err error) {
		have, err = readRevision(tx)
		return err
	})
	if err == nil && have < newest {
		return failed
	}
	e.unsettled = true
	if err := e.settle(); err != nil {
		return fmt.Errorf("%w: %w: %w", store.ErrUnknownOutcome, failed, err)
	}
	return nil
}

// settle makes the newest transaction durable after the sync of its meta page failed. Nothing may be written before:
// bbolt counts the replaced pages as free, but the disk may still have the previous transaction, which needs them.
// Another sync proves nothing, as the kernel drops pages that it could not sync. So settle writes the same bytes of
// the meta page again. It does not touch the other meta page, so one of the two is whole at any moment.
//
// Reads that began before the failure also need the replaced pages, and bbolt no longer reserves them. So settle waits
// until these reads are done.
func (e *Engine) settle() error {
	e.reads.Lock()
	defer e.reads.Unlock()
	var id int
	err := view(e.db, e.path, func(tx *bbolt.Tx) error {
		id = tx.ID()
		return nil
	})
	if err != nil {
		return err
	}
	size := e.db.Info().PageSize
	offset := int64(id%2) * int64(size) // bbolt alternates between pages 0 and 1
	meta := make([]byte, size)
	if _, err := e.file.ReadAt(meta, offset); err != nil {
		return fmt.Errorf("read meta page again: %w", err)
	}
	if _, err := e.file.WriteAt(meta, offset); err != nil {
		return fmt.Errorf("write meta page again: %w", err)
	}
	if err := e.sync(); err != nil {
		return fmt.Errorf("sync meta page again: %w", err)
	}
	e.unsettled = false
	for _, r := range e.inDoubt {
		close(r.settled)
	}
	e.inDoubt = nil
	e.wakeFan()
	return nil
}

// causedError is an error whose cause is only in its text.
type causedError struct {
	error
	errno syscall.Errno
}

func (c causedError) Unwrap() []error { return []error{c.error, c.errno} }

// withErrno makes errors.Is find the system's error. bbolt puts it only into the text if the file can't grow.
func withErrno(err error) error {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EIO, syscall.ENOMEM} {
		if !errors.Is(err, errno) && strings.HasSuffix(err.Error(), errno.Error()) {
			return causedError{err, errno}
		}
	}
	return err
}
