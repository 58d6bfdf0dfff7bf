package daemon

import (
	"context"
	"fmt"
	"time"
)

// A stop takes at most stopWithin. The unit's TimeoutStopSec is above it.
const (
	drain      = 10 * time.Second // for calls under way
	cut        = 5 * time.Second  // for calls to end after their contexts ended
	stopWithin = 20 * time.Second // for all of it
)

// bounded runs the daemon. It returns at most within after ctx is done, even if a part hangs, such as a write to a
// dead file system. The caller must exit then. The next start treats that exit as a crash: nothing is lost, and
// unfinished work goes on.
func bounded(ctx context.Context, within time.Duration, run func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- run() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(within):
		return fmt.Errorf("stop: a part of espm still runs after %v, so the process ends without it: the next start continues what was left", within)
	}
}
