// Package serverfile changes two files of a Puppet Server that espm is set up beside,
// puppet.conf and auth.conf, as little as can be: what stands in them stays, byte for byte,
// and what somebody has set otherwise is never overwritten.
package serverfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/espm-project/espm/internal/durable"
)

// Change is a file as it is to be.
type Change struct {
	Path   string // with symbolic links followed
	Backup string // where Apply keeps it as it was; "" before that, and where the file was not there
	Done   bool   // Apply has changed it

	was, is []byte
	info    fs.FileInfo // nil: it is not there
}

// Needed reports whether the file is not yet as it is to be.
func (c *Change) Needed() bool { return !bytes.Equal(c.was, c.is) }

// Plan reads the file at path, which is empty if it is not there, and has edit say how it is to be. It
// writes nothing. An error of edit comes back with the path before it.
func Plan(path string, edit func(text []byte) ([]byte, error)) (*Change, error) {
	c := &Change{Path: path}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		c.Path = real
		if c.info, err = os.Stat(real); err == nil {
			c.was, err = os.ReadFile(real)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if c.is, err = edit(c.was); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Apply replaces the file in one step, if that is needed, and keeps it as it was beside it, with the same
// mode and owner. Once it returns nil both are on the disk. After an error or a crash the file
// is as it was or as it is to be, and a second Plan and Apply finish.
func (c *Change) Apply(disk durable.Disk, now time.Time) error {
	if !c.Needed() {
		return nil
	}
	mode := fs.FileMode(0o644)
	if c.info != nil {
		mode = c.info.Mode().Perm()
		if err := c.keep(disk, now); err != nil {
			return err
		}
	}
	if err := disk.WriteFile(c.Path, c.is, mode); err != nil {
		return err
	}
	c.Done = true
	return nil
}

// keep writes the backup, over no other. Its name ends in nothing that Puppet Server reads in conf.d.
func (c *Change) keep(disk durable.Disk, now time.Time) error {
	name := c.Path + ".espm-" + now.UTC().Format("20060102T150405Z")
	backup := name
	for n := 2; ; n++ {
		have, err := os.ReadFile(backup)
		if err == nil && !bytes.Equal(have, c.was) { // of the same second
			backup = fmt.Sprintf("%s-%d", name, n)
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = disk.WriteFile(backup, c.was, c.info.Mode().Perm())
		}
		if err != nil {
			return err
		}
		break
	}
	if owner, ok := c.info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := os.Lchown(backup, int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	c.Backup = backup
	return nil
}
