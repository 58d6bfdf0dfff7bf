// Package serverfile changes two files of a Puppet Server on the same host,
// puppet.conf and auth.conf. It only adds lines: all existing bytes stay the same,
// and it never overwrites a setting.
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

// Change is a planned change of a file.
type Change struct {
	Path   string // with symbolic links resolved
	Backup string // the path of the backup; "" before Apply, and if the file is new
	Done   bool   // Apply has changed it

	was, is []byte
	info    fs.FileInfo // nil: the file is new
}

// Needed reports whether the change would change the file.
func (c *Change) Needed() bool { return !bytes.Equal(c.was, c.is) }

// Plan calls edit with the content of the file at path, or with nothing if there is no file. edit returns the new
// content. Plan writes nothing. It adds the path to an error of edit.
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

// Apply replaces the file atomically, if that is needed, and writes a backup beside it with the same
// mode and owner. Both are durable when it returns nil. After an error or a crash, the file
// has its old or its new content, and a second Plan and Apply complete the change.
func (c *Change) Apply(disk durable.Disk, now time.Time) error {
	if !c.Needed() {
		return nil
	}
	mode := fs.FileMode(0o644)
	if c.info != nil {
		mode = c.info.Mode().Perm()
		if err := c.backUp(disk, now); err != nil {
			return err
		}
	}
	if err := disk.WriteFile(c.Path, c.is, mode); err != nil {
		return err
	}
	c.Done = true
	return nil
}

// backUp writes the backup and overwrites no other. Puppet Server does not read files with such names in conf.d.
func (c *Change) backUp(disk durable.Disk, now time.Time) error {
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
