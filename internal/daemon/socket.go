package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// listen makes a local socket for its owner and a group, if one is
// given. It replaces the socket of a killed daemon.
func listen(path, group string) (net.Listener, error) {
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	// The folder may be on a file system that is empty after a boot, as /run is.
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// Nobody may connect before the mode is set.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	if err := giveGroup(path, group, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// clearSocket removes a socket that no process listens on. A socket that refuses connections for another
// reason, such as load, stays.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s stands in the way: it is no socket; nothing was changed", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("%s is there, and can't be asked whether another espm serves: %w", path, err)
	}
	conn.Close()
	return fmt.Errorf("%s is in use: another espm serves there", path)
}

// giveGroup sets a file's mode, and its group if one is given.
func giveGroup(path, group string, mode os.FileMode) error {
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return fmt.Errorf("group %s: %w", group, err)
		}
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return fmt.Errorf("group %s has the id %q", group, g.Gid)
		}
		err = os.Chown(path, -1, gid)
		if errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("%w: espm's user must own the file and be in the group: usermod --append --groups %s USER", err, group)
		}
		if err != nil {
			return fmt.Errorf("group %s: %w", group, err)
		}
	}
	return os.Chmod(path, mode)
}
