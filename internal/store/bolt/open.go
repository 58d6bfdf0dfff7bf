package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	bbolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// create makes an empty store at path if there is no file. create syncs the folder, so that the name
// survives a power loss. The file appears whole or not at all, and never replaces another file.
func create(path string, mode os.FileMode) error {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer folder.Close()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createNew(path, mode); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// The sync is needed even for an existing file: its creator may have crashed before the sync.
	if err := folder.Sync(); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

func createNew(path string, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	db, err := bbolt.Open(f.Name(), mode, &bbolt.Options{FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(initLayout), db.Close()); err != nil {
		return err
	}
	// Link, unlike Rename, never replaces a file that another process has just made.
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// openFile opens an existing bbolt file, and checks that it is a store of this layout. The returned file
// is the one that bbolt has open.
func openFile(path string, timeout time.Duration, readOnly bool) (db *bbolt.DB, file *os.File, err error) {
	// bbolt maps the file and trusts its page numbers. With a damaged file, bbolt panics or reads past the
	// end, which is a fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		p := recover()
		if p != nil {
			err = fmt.Errorf("file is damaged: %v", p)
		}
		if err != nil && file != nil {
			// bbolt does not unmap the file. The map keeps the lock, even after file is closed.
			_ = syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
			_ = file.Close()
		}
	}()
	db, err = bbolt.Open(path, 0, &bbolt.Options{
		Timeout:  max(timeout, 1), // bbolt waits without limit for 0
		ReadOnly: readOnly,
		// The free list is stored. Otherwise bbolt scans the whole file whenever it opens the file for
		// writing, and after every failed commit.
		NoFreelistSync:  false,
		FreelistType:    bbolt.FreelistMapType, // the array slows down as the file fragments
		PreLoadFreelist: false,                 // a reader does not need the free list
		// To grow the map, bbolt waits for all readers and blocks new ones. Up to 1 GiB, the map grows
		// whenever the file doubles, then at every GiB. A large initial map avoids these waits. The map
		// costs only address space, and the file stays small.
		InitialMmapSize: 1 << 30,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			var err error
			file, err = openExisting(name, flag, mode)
			return file, err
		},
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, file, ErrLocked
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, file, fmt.Errorf("file is damaged or no bbolt file: %w", err)
	case err != nil:
		return nil, file, err
	}
	if err := db.View(func(tx *bbolt.Tx) error { return checkLayout(tx, file) }); err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, file, nil
}

// openExisting never creates a file. openExisting refuses an empty file, which bbolt would initialize.
func openExisting(name string, flag int, mode os.FileMode) (*os.File, error) {
	file, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = errors.New("no regular file")
	case info.Size() == 0:
		err = errors.New("file is empty, not a store: remove it to have a new one created")
	default:
		return file, nil
	}
	return nil, errors.Join(err, file.Close())
}

func checkLayout(tx *bbolt.Tx, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("file is cut short: %d bytes of %d", info.Size(), tx.Size())
	}
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return errors.New("bbolt file is no store of espm: it has no bucket meta")
	}
	text := string(meta.Get(keyFormat))
	switch version, err := strconv.Atoi(text); {
	case err != nil || version < 1:
		return fmt.Errorf("store has an unknown layout %q", text)
	case version > format:
		return fmt.Errorf("store was written by a newer espm: its layout is %d, this espm knows up to %d; nothing was changed", version, format)
	}
	if tx.Bucket(bucketKV) == nil || tx.Bucket(bucketHistory) == nil {
		return errors.New("store is damaged: a bucket is missing")
	}
	_, err = readRevision(tx)
	return err
}
