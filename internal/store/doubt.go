package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// ErrUnknownOutcome marks an error after which a commit may have been applied or not. The error is a *DoubtError.
var ErrUnknownOutcome = errors.New("outcome unknown")

// DoubtError is the error of a commit that may have been applied or not.
// errors.Is(err, ErrUnknownOutcome) and errors.Is(err, node.ErrUnavailable) hold.
type DoubtError struct {
	Cause error

	// Settle waits until the outcome is known, and returns what Commit would have returned. If ctx ends first, it
	// returns another *DoubtError. It may be called repeatedly and concurrently.
	//
	// A read of the commit's keys does not tell the outcome: it may show a commit that is not durable yet, or miss
	// one that will still be applied.
	Settle func(ctx context.Context) (revision int64, err error)
}

func (e *DoubtError) Error() string { return fmt.Sprintf("%v: %v", ErrUnknownOutcome, e.Cause) }

// Unwrap returns what errors.Is finds in the error.
func (e *DoubtError) Unwrap() []error {
	return []error{ErrUnknownOutcome, node.ErrUnavailable, e.Cause}
}

// DefaultBound is the Bound of a Store that New returns.
const DefaultBound = 30 * time.Second

// commit is the only caller of the engine's Commit. It waits at most for Bound, and no longer than ctx. If the
// outcome is unknown, it settles it within that time. If a guard fails, the error wraps node.ErrStale and the
// *GuardError.
func (s *Store) commit(ctx context.Context, b Batch) (int64, error) {
	limited, cancel := context.WithTimeout(ctx, s.Bound)
	defer cancel()
	rev, err := s.engine.Commit(limited, b)
	if err != nil {
		rev, err = s.settle(limited, err)
	}
	if guard, ok := errors.AsType[*GuardError](err); ok {
		return 0, errors.Join(node.ErrStale, guard)
	}
	if err != nil && !errors.Is(err, node.ErrUnavailable) && errors.Is(limited.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
		err = fmt.Errorf("%w: the commit was given up, nothing was changed: the store took none for %v; see its disk, then try again: %w", node.ErrUnavailable, s.Bound, err)
	}
	return rev, err
}

// Settle returns the outcome of a commit that ended with err. It waits until the outcome is known, at most for Bound,
// and no longer than ctx. If err tells the outcome, Settle returns err.
func (s *Store) Settle(ctx context.Context, err error) (int64, error) {
	limited, cancel := context.WithTimeout(ctx, s.Bound)
	defer cancel()
	return s.settle(limited, err)
}

func (s *Store) settle(ctx context.Context, err error) (int64, error) {
	doubt, ok := errors.AsType[*DoubtError](err)
	if !ok {
		return 0, err
	}
	rev, err := doubt.Settle(ctx)
	if errors.Is(err, ErrUnknownOutcome) {
		err = fmt.Errorf("the store did not say within %v whether the change was made. "+
			"Look at the object, or repeat the call with the same request id where it had one: %w", s.Bound, err)
	}
	return rev, err
}
