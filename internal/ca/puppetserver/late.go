package puppetserver

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// longestSign is how long after its intent a Sign may still send calls.
const longestSign = 2 * time.Minute

// unanswered has the calls that change something and whose answers were lost. The server may
// carry them out during Options.SignWait: 8.7 reads a CSR, and then waits
// for its locks. A policy script runs after the CSR is stored.
type unanswered struct {
	mu    sync.Mutex
	since map[pending]time.Time // when the last answer was lost
}

// pending is the name and the key of a Sign.
type pending struct {
	name    node.Certname
	keyHash string
}

// change is ask for a call that changes something. It remembers a lost answer by name and key.
func (a *signer) change(ctx context.Context, name node.Certname, keyHash string, c call) error {
	_, err := a.ask(ctx, c)
	if !lost(err) {
		return err
	}
	now := a.opts.Now()
	u := &a.unanswered
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.since, func(_ pending, since time.Time) bool { return now.Sub(since) >= a.opts.SignWait })
	u.since[pending{name, keyHash}] = now
	return err
}

// tooEarly returns a *node.BusyError while the server may still work on a call of the Sign. The Sign ran in this
// process, or in an earlier process that ended before New.
func (a *signer) tooEarly(q ca.Query) error {
	a.unanswered.mu.Lock()
	since, is := a.unanswered.since[pending{q.Certname, q.KeyHash}]
	a.unanswered.mu.Unlock()
	now := a.opts.Now()
	left := time.Duration(0)
	if is {
		left = a.opts.SignWait - now.Sub(since)
	}
	if q.Since.Before(a.made) {
		earlier := a.opts.SignWait + min(a.made.Sub(now), longestSign-now.Sub(q.Since))
		left = max(left, earlier)
	}
	if left <= 0 {
		return nil
	}
	return &node.BusyError{
		Reason:     fmt.Sprintf("an answer of Puppet Server about %q was lost, and it may still work on the request", q.Certname),
		RetryAfter: (left + time.Second - 1).Truncate(time.Second),
	}
}
