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

// longestSign is how long a Sign may send anything, counted from its intent.
const longestSign = 2 * time.Minute

// unanswered knows the changes under a name whose answers were lost. The server may
// carry them out for as long as Options.SignWait: 8.7 reads a CSR, and then waits
// for its locks; a policy script runs after the CSR is stored.
type unanswered struct {
	mu    sync.Mutex
	since map[question]time.Time // the last of each
}

// question is what Find is asked about.
type question struct {
	name    node.Certname
	keyHash string
}

// change is ask for what changes something under a name, on behalf of a key.
func (a *signer) change(ctx context.Context, name node.Certname, keyHash string, c call) error {
	_, err := a.ask(ctx, c)
	if !lost(err) {
		return err
	}
	now := a.opts.Now()
	u := &a.unanswered
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.since, func(_ question, since time.Time) bool { return now.Sub(since) >= a.opts.SignWait })
	u.since[question{name, keyHash}] = now
	return err
}

// tooEarly says whether the server may still be at something of a Sign that was
// cut short: in this process, or in an earlier one, which ended before this authority was made.
func (a *signer) tooEarly(q ca.Query) error {
	a.unanswered.mu.Lock()
	since, is := a.unanswered.since[question{q.Certname, q.KeyHash}]
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
		Reason:     fmt.Sprintf("an answer of Puppet Server about %q was lost, and it may still be at the request", q.Certname),
		RetryAfter: (left + time.Second - 1).Truncate(time.Second),
	}
}
