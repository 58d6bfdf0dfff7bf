package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// forbidCoreDumps prevents core dumps, as they would write private keys to the disk. The kernel ignores the
// limit if core_pattern names a program (core(5)), but not the attribute PR_SET_DUMPABLE. The attribute also
// stops debuggers of the same user.
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
