package revoke

import (
	"math/rand/v2"
	"time"

	"github.com/espm-project/espm/internal/node"
)

const (
	minBackoff = time.Second
	maxBackoff = 5 * time.Minute
)

// backoff returns the pause after a number of failures in a row. It doubles each time up to five minutes, and has
// jitter.
func backoff(failures int) time.Duration {
	pause := maxBackoff
	if failures < 10 { // the tenth pause would be 512 s, over maxBackoff
		pause = min(minBackoff<<(failures-1), maxBackoff)
	}
	return pause/2 + rand.N(pause/2) // #nosec G404 -- jitter, no secret
}

// fail returns the failure after before, which is nil for the first one.
func fail(before *node.Failure, err error, now time.Time) *node.Failure {
	f := node.Failure{Attempts: 1}
	if before != nil {
		f.Attempts += before.Attempts
	}
	f.Error = node.Shorten(err.Error(), maxError)
	f.FailedAt = now.UTC()
	f.RetryAt = f.FailedAt.Add(backoff(f.Attempts))
	return &f
}

// maxError bounds the error in a record, in bytes.
const maxError = 1024

// untilRetry returns the wait until the next try.
func untilRetry(f *node.Failure, now time.Time) time.Duration {
	if f == nil {
		return 0
	}
	wait := f.RetryAt.Sub(now)
	if wait > maxBackoff {
		return 0 // the clock was set back
	}
	return max(wait, 0)
}
