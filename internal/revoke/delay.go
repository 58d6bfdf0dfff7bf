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

// backoff is the pause after so many failures in a row: twice as long each
// time, up to five minutes, with jitter.
func backoff(failures int) time.Duration {
	pause := maxBackoff
	if failures < 10 { // 512 s is beyond the most
		pause = min(minBackoff<<(failures-1), maxBackoff)
	}
	return pause/2 + rand.N(pause/2) // #nosec G404 -- jitter, no secret
}

// fail adds a failure to those before it (nil: none).
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

// maxError keeps a record small, in bytes.
const maxError = 1024

// left is how long it is until the next try.
func left(f *node.Failure, now time.Time) time.Duration {
	if f == nil {
		return 0
	}
	wait := f.RetryAt.Sub(now)
	if wait > maxBackoff {
		return 0 // the clock was set back
	}
	return max(wait, 0)
}
