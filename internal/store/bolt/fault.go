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

// resolve finds the outcome of a transaction for which bbolt returned an error. resolve returns nil if the
// transaction is durable.
//
// bbolt writes the data pages and syncs. Then it writes the meta page, which makes the data pages valid,
// and syncs again. Before the meta page bbolt writes only free pages, so it can roll back. If the second
// sync failed, the meta page is in the kernel's cache. bbolt and other processes then see the transaction,
// although the disk may not have it. So resolve reads the revision: the new revision means that the meta
// page was written.
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

// settle makes the newest transaction durable after the sync of its meta page failed. No other transaction
// may be written first. bbolt counts the replaced pages as free, but the disk may still have the previous
// transaction, which needs them.
//
// Another sync proves nothing, as the kernel drops pages that it could not sync. So settle writes the
// bytes of the meta page again. settle does not touch the other meta page, so at any moment one of the two
// is whole.
//
// Reads that began before the failure also need the replaced pages, and bbolt no longer reserves these
// pages. So settle waits until such reads are done.
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

// causedError adds an errno to an error that has it only in its text.
type causedError struct {
	error
	errno syscall.Errno
}

func (c causedError) Unwrap() []error { return []error{c.error, c.errno} }

// withErrno makes errors.Is find the system's error. If the file can't grow, bbolt has that error only in
// the text.
func withErrno(err error) error {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EIO, syscall.ENOMEM} {
		if !errors.Is(err, errno) && strings.HasSuffix(err.Error(), errno.Error()) {
			return causedError{err, errno}
		}
	}
	return err
}
