package clock

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Synchronized says whether a time service keeps the kernel's clock right (adjtimex(2)). Reading needs no capability.
func Synchronized() (bool, error) {
	var t unix.Timex // no modes: it changes nothing
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, fmt.Errorf("ask the kernel for its clock's state: adjtimex: %w", err)
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, nil
}
