// Package durable is the project's one way to write a file: what it has
// written survives a killed process and a power cut, or was never seen.
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

// Disk writes files durably. When a method returns nil the change is on the
// disk, and so is the name that leads to it. When it returns an error the
// change may have been applied or not, but never in part: a reader sees the
// file as it was or as it was to be. Errors keep the operating system's
// number for errors.Is (unix.ENOSPC) and name the path. Calls on different
// paths may be made at once; calls on one path are the caller's to order.
type Disk interface {
	// WriteFile replaces path with data in one step. The file gets exactly
	// mode, whatever the umask; running as root, it keeps the owner of the
	// file that it replaces, unless everybody may put files into the folder. A symbolic link is replaced, not followed.
	WriteFile(path string, data []byte, mode fs.FileMode) error

	// Append adds data to the end of path, which gets mode if it is new. A
	// write that fails is undone, so that no half of data stays; only a
	// killed process can leave one.
	Append(path string, data []byte, mode fs.FileMode) error

	// Truncate cuts path to size bytes.
	Truncate(path string, size int64) error

	// Remove removes files of one folder, which it syncs once; one that is
	// not there is no error. One that can't be removed does not stop the others:
	// a *RemoveError tells which; any other error may concern them all.
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

// WriteStream is OS.WriteFile with what write writes. Unless that returns nil, path stays as it was.
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
	// The folder itself holds the temporary file, never $TMPDIR: renameio's
	// guess that both share a file system costs two files a call.
	// It starts at 0600, so that a key is never open to others, not even for
	// an instant; the owner changes before the mode widens.
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

// nameless leaves out the temporary file's random name: who logs an error once must
// be able to tell that it is the same one again.
func nameless(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	return err
}

// keepOwner gives f the owner of the file at path. Only root may; a daemon
// that runs as root in a folder of the user puppet must not take files away.
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
	if dir.Mode&0o002 != 0 { // as in /tmp: who put a file there before must not own a key or a backup after
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
		// A full disk takes a part of the data: undo it, for the next append
		// would go on in the middle of a line.
		return errors.Join(err, f.Truncate(st.Size()), f.Sync())
	}
	if st.Size() == 0 { // perhaps new: its name must last too
		return SyncFolder(filepath.Dir(path))
	}
	return nil
}

func (osDisk) Truncate(path string, size int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
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

// RemoveError is what Remove could not remove, and why; the other files are gone for good.
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

// SyncFolder makes names created in, renamed into and removed from a folder
// durable; renameio leaves that out.
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

// RemoveStale removes the temporary files that a killed WriteFile left in dir
// for the names that ours accepts. Nothing may be writing those names. It
// returns how many it removed; a dir that is not there has none.
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

// target tells which file a temporary file of renameio, "." NAME DIGITS, was to become.
func target(temp string) (string, bool) {
	hidden, ok := strings.CutPrefix(temp, ".")
	name := strings.TrimRight(hidden, "0123456789")
	return name, ok && name != "" && len(name) < len(hidden)
}
