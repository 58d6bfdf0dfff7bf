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

// listen makes a local socket that its owner and, where given, a group may
// use. A socket that nobody listens on any more, left by a killed daemon, is replaced.
func listen(path, group string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s is in use: another espm serves there", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// No one may connect before the mode is set.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the folder %s does not exist", filepath.Dir(path))
	}
	if err != nil {
		return nil, err
	}
	if err := giveGroup(path, group, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// giveGroup sets a file's mode and, where a group is named, its group.
func giveGroup(path, group string, mode os.FileMode) error {
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return fmt.Errorf("enc.group: %w", err)
		}
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return fmt.Errorf("enc.group: group %s has the id %q", group, g.Gid)
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return fmt.Errorf("enc.group: %w", err)
		}
	}
	return os.Chmod(path, mode)
}
