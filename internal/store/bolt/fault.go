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

// resolve finds out what became of a transaction that bbolt says failed; nil
// if it is durable after all. bbolt writes the pages, syncs, writes the meta
// page that makes them count, syncs. Up to the meta page nothing has happened
// but for free pages having been written, and bbolt takes it all back.
// But where the second sync failed, the meta page is in the kernel's cache:
// bbolt itself and other processes see the transaction from now on, while the
// disk may or may not have it. That shows by its revision being read.
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

// settle makes the newest transaction durable after the sync of its meta page
// failed. Nothing may be written before: bbolt, seeing that transaction, holds
// the pages it has replaced for free, but the disk may still have the one before, which
// needs them. And since the kernel drops what it could not sync, syncing again
// would prove nothing: the meta page is written once more, the same bytes.
// The other meta page is left alone, so that one is whole at any moment.
//
// Readers who began before the failure need those pages as well, and bbolt no
// longer knows of them: settle waits until they are done.
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
	e.wakeWatches()
	return nil
}

// causedError is an error whose cause is only in its text.
type causedError struct {
	error
	errno syscall.Errno
}

func (c causedError) Unwrap() []error { return []error{c.error, c.errno} }

// withErrno makes errors.Is find the system's error where bbolt put it into
// the text only, as it does when the file can't be grown.
func withErrno(err error) error {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EIO, syscall.ENOMEM} {
		if !errors.Is(err, errno) && strings.HasSuffix(err.Error(), errno.Error()) {
			return causedError{err, errno}
		}
	}
	return err
}
