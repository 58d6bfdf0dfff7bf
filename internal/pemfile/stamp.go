package pemfile

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Stamp identifies the state of a file. Equal stamps mean that the file has not changed. A rewrite with
// the same size and modification time changes the stamp, as the kernel sets the change time. No file has
// the zero Stamp.
type Stamp struct {
	inode           uint64
	size            int64
	written, change syscall.Timespec
}

// StampOf returns the stamp of a file, or the zero Stamp and an error. Call it before the file is
// read, so that the next call detects a change during the read.
func StampOf(path string) (Stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Stamp{}, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Stamp{}, &fs.PathError{Op: "stat", Path: path, Err: syscall.ENOTSUP}
	}
	return Stamp{s.Ino, s.Size, s.Mtim, s.Ctim}, nil
}

// Stamps returns the stamps of files that are read together. A file that can't be examined has the zero
// Stamp.
func Stamps(paths ...string) []Stamp {
	stamps := make([]Stamp, len(paths))
	for i, path := range paths {
		stamps[i], _ = StampOf(path)
	}
	return stamps
}

// HasContent reports whether a file can be read and has that content. HasContent reads in pieces, so that
// a large file needs little memory.
func HasContent(path string, want []byte) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // a file that was only read has no error to report
	piece := make([]byte, 64<<10)
	for {
		n, err := f.Read(piece)
		if !bytes.HasPrefix(want, piece[:n]) {
			return false
		}
		want = want[n:]
		if err != nil {
			return errors.Is(err, io.EOF) && len(want) == 0
		}
	}
}
