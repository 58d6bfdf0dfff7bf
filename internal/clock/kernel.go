package clock

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Synchronized reports whether a time service synchronizes the kernel's clock (adjtimex(2)). The call
// needs no capability.
func Synchronized() (bool, error) {
	var t unix.Timex // no modes: the call changes nothing
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, fmt.Errorf("ask the kernel for its clock's state: adjtimex: %w", err)
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, nil
}
