package registry

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// retryAfter is when to come back for a name whose revocation is pending: a
// few batches of revocations later.
const retryAfter = 5 * time.Second

// fence holds up an issue while something may revoke its certificate by the name alone.
type fence struct {
	core
	traits func() ca.Traits
	queue  interface {
		Kick()
		Wait(ctx context.Context, revs []node.Revocation) ([]node.Revocation, error)
	}
	settleSoon func()
}

// wait waits until nothing is left that may revoke, by the name alone, the
// certificate that is about to be issued for n. It gives up shortly before
// patience ends, so that the caller still gets the answer: a *node.BusyError.
func (f *fence) wait(patience context.Context, n node.Node) error {
	if !f.traits().RevokesByName {
		return nil
	}
	limit := time.Now().Add(issueTimeout / 2) // the rest is for the issue itself
	if deadline, ok := patience.Deadline(); ok && deadline.Before(limit) {
		limit = deadline.Add(-min(time.Until(deadline)/10, time.Second))
	}
	ctx, cancel := context.WithDeadline(patience, limit)
	defer cancel()
	for {
		pending, open, err := f.unfinished(patience, n.Certname, n.UID)
		if err != nil || len(pending)+len(open) == 0 {
			return err
		}
		if len(open) > 0 {
			f.settleSoon()
			if err := f.store.WaitIntent(ctx, open[0]); err != nil && ctx.Err() == nil {
				return err
			}
		} else {
			f.queue.Kick()
			if pending, err = f.queue.Wait(ctx, pending); err != nil {
				return err
			}
		}
		stopped := len(open) == 0 && slices.ContainsFunc(pending, node.Revocation.Open)
		if ctx.Err() != nil || stopped {
			return busy(n.Certname, len(pending), len(open))
		}
	}
}

// check makes sure that what wait waited for did not come again before
// the intent was committed: a whole other life of the name fits in between.
func (f *fence) check(ctx context.Context, intent node.IssueIntent) error {
	if !f.traits().RevokesByName {
		return nil
	}
	pending, open, err := f.unfinished(ctx, intent.Certname, intent.UID)
	if err != nil || len(pending)+len(open) == 0 {
		return err
	}
	return busy(intent.Certname, len(pending), len(open))
}

func busy(name node.Certname, pending, open int) error {
	return &node.BusyError{
		Reason: fmt.Sprintf("the CA revokes by name, and %q has %d revocations pending and %d unfinished issues of earlier registrations",
			name, pending, open),
		RetryAfter: retryAfter,
	}
}

// unfinished returns the pending revocations of a name, and the registrations
// beside one that have an open intent.
func (f *fence) unfinished(ctx context.Context, name node.Certname, but node.UID) (pending []node.Revocation, open []node.UID, err error) {
	for intent, err := range f.store.Intents(ctx) {
		if err != nil {
			return nil, nil, err
		}
		if intent.Certname == name && intent.UID != but {
			open = append(open, intent.UID)
		}
	}
	// After the intents: an intent turns into a revocation, never the reverse.
	pending, err = f.store.PendingOf(ctx, name)
	return pending, open, err
}
