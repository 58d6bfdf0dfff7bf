// Package durable writes files. All packages of espm write with it. After a crash or a power loss, a file
// has either its old or its new content.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Disk writes files durably. When a method returns nil, the change and the file's name are on the disk.
// After an error, the change is applied completely or not at all: a reader sees either the old or the new
// file. Errors name the path, and wrap the operating system's error for errors.Is (unix.ENOSPC). Calls on
// different paths may run concurrently. The caller must order calls on the same path.
type Disk interface {
	// WriteFile replaces path with data, atomically. The file gets exactly mode, independent of the umask.
	// As root, WriteFile keeps the owner of the old file, unless the folder is writable for everybody.
	// WriteFile replaces a symbolic link itself, not the link's target: see Target.
	WriteFile(path string, data []byte, mode fs.FileMode) error

	// Append adds data to the end of path. A new file gets mode. If the write fails, Append removes the
	// part of data that was written. Only a crash can leave a part.
	Append(path string, data []byte, mode fs.FileMode) error

	// Remove removes files of one folder, with one sync of the folder. A missing file is no error. If a
	// file can't be removed, Remove still removes the others, and returns a *RemoveError with the
	// failures. Any other error may concern all files.
	Remove(paths ...string) error
}

// OS is the Disk of the operating system.
var OS Disk = osDisk{}

type osDisk struct{}

func (osDisk) WriteFile(path string, data []byte, mode fs.FileMode) error {
	if err := replace(path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncFolder(filepath.Dir(path))
}

// WriteStream is OS.WriteFile for data that write produces. If write returns an error, path does not change.
func WriteStream(path string, mode fs.FileMode, write func(w io.Writer) error) error {
	if err := replaceWith(path, mode, write); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncFolder(filepath.Dir(path))
}

func replace(path string, data []byte, mode fs.FileMode) error {
	return replaceWith(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func replaceWith(path string, mode fs.FileMode, write func(w io.Writer) error) error {
	dir := filepath.Dir(path)
	// The temporary file is always in the same folder, not in $TMPDIR. Otherwise renameio makes two files
	// for each call, to find out whether both folders are on the same file system. The mode is 0600 until
	// the owner is set, so that others can never read a key.
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return nameless(err)
	}
	err = keepOwner(f.File, path)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = write(f)
	}
	if err == nil {
		err = f.CloseAtomicallyReplace()
	}
	if err != nil {
		return errors.Join(nameless(err), nameless(f.Cleanup()))
	}
	return nil
}

// nameless removes the temporary file's random name from an error. So the same failure always has the same
// text, and a caller can log it only once.
func nameless(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	return err
}

// keepOwner gives f the owner of the file at path. Only root can change an owner. A daemon that runs as
// root in a folder of the user puppet must not change the owner of puppet's files.
func keepOwner(f *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if int(st.Uid) == 0 && int(st.Gid) == os.Getegid() {
		return nil
	}
	var dir unix.Stat_t
	if err := unix.Stat(filepath.Dir(path), &dir); err != nil {
		return err
	}
	if dir.Mode&0o002 != 0 { // as /tmp: a user who created the file before espm must not become the owner of a key or a backup
		return nil
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}

func (osDisk) Append(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err != nil {
		// A full disk may have accepted a part of the data. Without Truncate, the next append would
		// continue in the middle of a line.
		return errors.Join(err, f.Truncate(st.Size()), f.Sync())
	}
	if st.Size() == 0 { // the file may be new: its name must be durable, too
		return SyncFolder(filepath.Dir(path))
	}
	return nil
}

func (osDisk) Remove(paths ...string) error {
	var errs []error
	failed := make(map[string]error)
	removed := ""
	for _, path := range paths {
		err := os.Remove(path)
		if err == nil {
			removed = path
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			failed[path] = err
		}
	}
	if removed != "" {
		if err := SyncFolder(filepath.Dir(removed)); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if len(failed) > 0 {
		return &RemoveError{Paths: failed}
	}
	return nil
}

// RemoveError has the files that Remove could not remove, with the causes. The removal of the other files
// is durable.
type RemoveError struct {
	Paths map[string]error
}

func (e *RemoveError) Error() string { return errors.Join(e.Unwrap()...).Error() }

func (e *RemoveError) Unwrap() []error {
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(e.Paths)) {
		errs = append(errs, e.Paths[path])
	}
	return errs
}

// SyncFolder makes creations, renames and removals in a folder durable. renameio does not sync the folder.
func SyncFolder(dir string) (err error) {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// RemoveStale removes the temporary files that a crash during WriteFile left in dir, for the names that
// ours accepts. No process may write these names meanwhile. RemoveStale returns the number of removed
// files. A missing dir is no error.
func RemoveStale(dir string, ours func(name string) bool) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	removed := 0
	for _, e := range entries {
		name, ok := target(e.Name())
		if !ok || !e.Type().IsRegular() || !ours(name) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// target returns the final name of a temporary file. renameio names a temporary file "." NAME DIGITS.
func target(temp string) (string, bool) {
	hidden, ok := strings.CutPrefix(temp, ".")
	name := strings.TrimRight(hidden, "0123456789")
	return name, ok && name != "" && len(name) < len(hidden)
}
