package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// forbidCoreDumps keeps the private keys in memory off the disk, whatever kills the process. The limit
// does not hold where core_pattern names a program (core(5)); the attribute does, and keeps
// a debugger of the same user out as well.
func forbidCoreDumps() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("turn core dumps off: getrlimit: %w", err)
	}
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("turn core dumps off: setrlimit: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("turn core dumps off: prctl: %w", err)
	}
	return nil
}
