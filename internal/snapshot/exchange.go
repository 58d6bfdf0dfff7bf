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

// rootKey is the file of an intermediate CA's root, which espm never needs.
const rootKey = "root_key.pem"

// switchOver puts what was staged in its place. Each of the two is replaced in one step.
// The CA goes first: with the old store it is a CA that knows less of what was signed, but all that was revoked.
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
	done.Store, done.Kept = t.store, t.kept
	for _, kept := range t.kept {
		if root := filepath.Join(kept, rootKey); site.Exists(root) && !site.Exists(filepath.Join(t.ca, rootKey)) {
			done.RootKey = root
		}
	}
	return nil
}

// exchange moves the staged file or folder to path, and sets the old one aside.
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
	// RENAME_EXCHANGE leaves the old file under the name that the new one had. Therefore the name says the new
	// file's inode: after a kill, settle removes the file of that inode, and keeps any other as the old one.
	turn := next + number
	if err := t.rename(next, turn, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	if err := t.rename(turn, path, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	return t.settle(path)
}

// settle ends the exchanges for path, also those of a restore that was killed. The replaced file gets its
// lasting name. A new file that never reached its place is removed.
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
		aside := path + before + t.stamp
		for n := 2; site.Exists(aside); n++ {
			aside = fmt.Sprintf("%s%s%s-%d", path, before, t.stamp, n)
		}
		if err := t.rename(name, aside, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		t.kept = append(t.kept, aside)
	}
	return durable.SyncFolder(filepath.Dir(path))
}

// inode is the number of a file or folder, which it keeps under another name.
func inode(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return strconv.FormatUint(st.Ino, 10), nil
}

// beside returns what is in the folder of path and begins with its name and more; none where there is no folder.
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

// giveOwner gives all below path the owner that place has, or its folder. Only root may.
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
