package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Expect names the record that the caller has read. A change is refused if the record is another one now. The
// zero Expect accepts any record.
type Expect struct {
	UID      node.UID
	Revision int64
}

func (e Expect) check(uid node.UID, revision int64) error {
	if e.UID != "" && e.UID != uid {
		return fmt.Errorf("%w: it is registration %s now", node.ErrUIDMismatch, uid)
	}
	if e.Revision != 0 && e.Revision != revision {
		return &staleError{e.Revision, revision}
	}
	return nil
}

// Update applies edit to a live node. Only an admin may set another owner, who then also owns the node's
// certificates and revocations. Errors: edit's, those of Register other than ErrNodeExists, and
// node.ErrNodeNotFound, ErrUIDMismatch, ErrStale. A new owner may also fail with node.ErrIssuing.
func (r *registrations) Update(ctx context.Context, name node.Certname, expect Expect, edit func(*node.Node) error, validateOnly bool) (node.Node, error) {
	var n node.Node
	a := accessOf(ctx)
	err := retry(func() error {
		old, err := r.view.node(ctx, name)
		if err != nil {
			return err
		}
		if err := expect.check(old.UID, old.Revision); err != nil {
			return fmt.Errorf("node %q: %w", name, err)
		}
		n = old.Clone()
		if err := edit(&n); err != nil {
			return err
		}
		slices.Sort(n.Groups)
		n.UpdatedAt = r.now().UTC()
		if err := node.Join(n.Validate(), a.mayChangeOwner(old.Owner, n.Owner), a.write()); err != nil {
			return err
		}
		c := store.NewChange()
		if n.Owner != old.Owner {
			if err := r.changeOwner(ctx, c, old, n.Owner); err != nil {
				return err
			}
		}
		c.Audit(r.line(ctx, node.ActionUpdate, n))
		return r.commit(ctx, c, &old, &n, validateOnly)
	})
	return n, asStale(err)
}

// staleError says that the revision in the call is not the record's. It does not wrap node.ErrStale, so that
// retry does not repeat the call: asStale wraps it later.
type staleError struct{ given, have int64 }

func (e *staleError) Error() string {
	return fmt.Sprintf("revision %d is not the record's, which is %d", e.given, e.have)
}

func asStale(err error) error {
	if stale, ok := errors.AsType[*staleError](err); ok {
		return fmt.Errorf("%w: %w", node.ErrStale, stale)
	}
	return err
}
