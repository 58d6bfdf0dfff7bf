package registry

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// retryAfter is the pause that a caller should make if its name has a pending revocation: the time of a few
// batches of revocations.
const retryAfter = 5 * time.Second

// fence delays an issue while an earlier order may revoke the new certificate by its name.
type fence struct {
	core
	traits func() ca.Traits
	queue  interface {
		Kick()
		Wait(ctx context.Context, revs []node.Revocation) ([]node.Revocation, error)
	}
	settleSoon func()
}

// wait waits until no pending revocation and no open intent of an earlier registration could revoke n's next
// certificate by its name. It returns a *node.BusyError shortly before the caller's deadline, so that the
// caller still gets this answer.
func (f *fence) wait(caller context.Context, n node.Node) error {
	if !f.traits().RevokesByName {
		return nil
	}
	limit := time.Now().Add(issueTimeout / 2) // the rest is for the issue itself
	if deadline, ok := caller.Deadline(); ok && deadline.Before(limit) {
		limit = deadline.Add(-min(time.Until(deadline)/10, time.Second))
	}
	ctx, cancel := context.WithDeadline(caller, limit)
	defer cancel()
	for {
		pending, open, err := f.unfinished(caller, n.Certname, n.UID)
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

// check repeats the condition of wait after the intent is committed: another registration of the name may have
// been made and terminated between wait and the commit.
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

// unfinished returns the pending revocations of a name, and its registrations with an open intent, other than
// the registration but.
func (f *fence) unfinished(ctx context.Context, name node.Certname, but node.UID) (pending []node.Revocation, open []node.UID, err error) {
	for intent, err := range f.store.Intents(ctx) {
		if err != nil {
			return nil, nil, err
		}
		if intent.Certname == name && intent.UID != but {
			open = append(open, intent.UID)
		}
	}
	// The revocations are read last: an intent may become a revocation, never the reverse.
	pending, err = f.store.PendingOf(ctx, name)
	return pending, open, err
}
