package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxLinks is how many links Target follows. The kernel has the same limit.
const maxLinks = 40

// Target returns the end of the chain of symbolic links at path. If WriteFile replaces that file, the
// links stay, and a reader of path gets the new content. Without a link, the result is path. The file may
// be missing.
//
// Target follows only links of root or of this process's user. With a link of another user, that user
// could replace a file that only this process may write. For the same reason, Target follows no link in a
// folder where everybody may replace any file.
func Target(path string) (string, error) {
	at := path
	for range maxLinks {
		text, err := readLink(at)
		if err != nil {
			return "", fmt.Errorf("write %s: %w", path, err)
		}
		if text == "" {
			return at, nil
		}
		// EvalSymlinks comes before the "..", as the folder of the link may itself be reached by a link.
		if !filepath.IsAbs(text) {
			text = filepath.Dir(at) + "/" + text
		}
		dir, name := filepath.Split(text)
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return "", fmt.Errorf("write %s: the symbolic link %s: %w", path, at, err)
		}
		at = filepath.Join(dir, name)
	}
	return "", fmt.Errorf("write %s: %w", path, unix.ELOOP)
}

// readLink returns the target of the link at path, or "" if path is no link. The owner check and the
// target are of the same link, even if another program replaces the link meanwhile.
func readLink(path string) (text string, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var link, dir unix.Stat_t
	if err := unix.Fstat(fd, &link); err != nil || link.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	if err := unix.Stat(filepath.Dir(path), &dir); err != nil {
		return "", err
	}
	if uid := os.Geteuid(); link.Uid != 0 && int(link.Uid) != uid {
		return "", fmt.Errorf("%s is a symbolic link of uid %d; espm runs as uid %d and follows its own links and root's: chown -h root %[1]s", path, link.Uid, uid)
	}
	if dir.Mode&unix.S_IWOTH != 0 && dir.Mode&unix.S_ISVTX == 0 {
		return "", fmt.Errorf("%s is a symbolic link in a folder where everybody may replace it: chmod o-w %s", path, filepath.Dir(path))
	}
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buffer)
	return string(buffer[:n]), err
}
