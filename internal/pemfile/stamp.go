package pemfile

import (
	"io/fs"
	"os"
	"syscall"
)

// Stamp is the state of a file: equal stamps mean that it has not changed. A
// file that is rewritten with the same size and the same time of modification has
// another stamp, as the kernel sets the time of change. The zero Stamp is of no file.
type Stamp struct {
	inode           uint64
	size            int64
	written, change syscall.Timespec
}

// StampOf returns the stamp of a file, the zero Stamp with an error. Take it before the file is
// read, so that a change in between shows the next time.
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

// Stamps returns the stamps of files that are read together. A file that can't be
// looked at has the zero Stamp.
func Stamps(paths ...string) []Stamp {
	stamps := make([]Stamp, len(paths))
	for i, path := range paths {
		stamps[i], _ = StampOf(path)
	}
	return stamps
}
