package bolt

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// describeHolder describes the process that has locked a file. The result is a guess if the process can't
// be found. The kernel's list has no entry for a process of another container. On some file systems, such as btrfs,
// the list and stat have different device numbers.
func describeHolder(path string) string {
	const guess = "is another `espm serve` running?"
	info, err := os.Stat(path)
	if err != nil {
		return guess
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return guess
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return guess
	}
	defer locks.Close()
	dev := uint64(stat.Dev)
	pid := lockHolder(locks, unix.Major(dev), unix.Minor(dev), stat.Ino)
	if pid == "" {
		return guess
	}
	if name, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil {
		return fmt.Sprintf("pid %s (%s) holds it", pid, strings.TrimSpace(string(name)))
	}
	return "pid " + pid + " holds it"
}

// lockHolder returns the pid of the process with a lock on the whole file, or "" if no pid is visible.
// locks has the format of /proc/locks (proc(5)):
//
//	1: FLOCK  ADVISORY  WRITE 4242 08:01:131074 0 EOF
func lockHolder(locks io.Reader, major, minor uint32, inode uint64) string {
	file := fmt.Sprintf("%02x:%02x:%d", major, minor, inode)
	lines := bufio.NewScanner(locks)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		// The second field of a process that waits for the lock is an arrow.
		if len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == file && fields[4] > "0" {
			return fields[4]
		}
	}
	return ""
}
