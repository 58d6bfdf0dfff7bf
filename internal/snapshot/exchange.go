package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/site"
)

// rootKey is the private key of an intermediate CA's root. espm never uses it.
const rootKey = "root_key.pem"

// switchOver moves the staged CA folder and store to their places, each atomically. The CA goes first. A kill
// between the two leaves the restored CA with the old store. That CA may lack newer certificates, but
// its CRL lacks no revocation.
func (t *restore) switchOver(done *Restored) error {
	if t.ca != "" {
		if err := giveOwner(t.ca+staged, t.ca); err != nil {
			return err
		}
		if err := t.exchange(t.ca); err != nil {
			return err
		}
		done.CA = t.ca
	}
	if err := giveOwner(t.store+staged, t.store); err != nil {
		return err
	}
	if err := t.exchange(t.store); err != nil {
		return err
	}
	done.Store, done.Kept = t.store, t.replaced
	for _, old := range t.replaced {
		if root := filepath.Join(old, rootKey); site.Exists(root) && !site.Exists(filepath.Join(t.ca, rootKey)) {
			done.RootKey = root
		}
	}
	return nil
}

// exchange moves the staged file or folder to path, and renames the old one.
func (t *restore) exchange(path string) error {
	next := path + staged
	if !site.Exists(path) {
		if err := t.rename(next, path, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		return durable.SyncFolder(filepath.Dir(path))
	}
	number, err := inode(next)
	if err != nil {
		return err
	}
	// RENAME_EXCHANGE leaves the old file under the new file's name. So this name has the inode number of the new
	// file. After a kill, settle compares: a file with this inode is the new one, and settle removes it. A file with
	// another inode is the old one, and settle keeps it.
	numbered := next + number
	if err := t.rename(next, numbered, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	if err := t.rename(numbered, path, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	return t.settle(path)
}

// settle completes the exchanges for path, also those of a killed restore. It renames the replaced file to its
// final name, and removes a new file that was not moved to path.
func (t *restore) settle(path string) error {
	names, err := beside(path, staged)
	if err != nil {
		return err
	}
	for _, name := range names {
		number := strings.TrimPrefix(name, path+staged)
		if number == "" || strings.Trim(number, "0123456789") != "" {
			continue
		}
		have, err := inode(name)
		if err != nil {
			return err
		}
		if have == number {
			if err := os.RemoveAll(name); err != nil {
				return err
			}
			continue
		}
		final := path + before + t.stamp
		for n := 2; site.Exists(final); n++ {
			final = fmt.Sprintf("%s%s%s-%d", path, before, t.stamp, n)
		}
		if err := t.rename(name, final, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		t.replaced = append(t.replaced, final)
	}
	return durable.SyncFolder(filepath.Dir(path))
}

// inode returns the inode number of a file or folder, which a rename does not change.
func inode(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return strconv.FormatUint(st.Ino, 10), nil
}

// beside returns the files in the folder of path whose names begin with path's name and more. Without the folder,
// there are none.
func beside(path, more string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+more) {
			found = append(found, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	return found, nil
}

// giveOwner changes the owner of path and everything below to the owner of place or, if that does not exist, of its
// folder. Only root can do so; for others giveOwner does nothing.
func giveOwner(path, place string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st syscall.Stat_t
	at := place
	if !site.Exists(place) {
		at = filepath.Dir(place)
	}
	if err := syscall.Stat(at, &st); err != nil {
		return fmt.Errorf("owner of %s: %w", at, err)
	}
	return site.GiveTo(path, int(st.Uid), int(st.Gid))
}

func rename(from, to string, flags uint) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags); err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return nil
}
