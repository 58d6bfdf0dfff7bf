package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// core is what every part of the registry needs: the records, the clock and the log.
type core struct {
	store *store.Store
	now   func() time.Time
	clock func() error // Options.Clock
	log   logrus.FieldLogger
}

// maxAttempts bounds how often a change is retried because another writer changed its records first.
const maxAttempts = 20

// retry calls change again while it fails with node.ErrStale, up to maxAttempts times.
func retry(change func() error) error {
	var err error
	for range maxAttempts {
		if err = change(); !errors.Is(err, node.ErrStale) {
			return err
		}
	}
	return fmt.Errorf("%w: other calls changed the same records %d times in a row; try again (%v)", node.ErrUnavailable, maxAttempts, err)
}

// line returns the audit line of an act on a registration.
func (k core) line(ctx context.Context, action node.Action, n node.Node) node.AuditLine {
	return audit.OfNode(ctx, k.now(), action, n)
}

// naming returns the audit line of an act that gives a name to a registration or a certificate. It says where an admin
// overrides a rule of names that holds for all others.
func (k core) naming(ctx context.Context, action node.Action, n node.Node) node.AuditLine {
	line := k.line(ctx, action, n)
	if node.IsAddress(string(n.Certname)) {
		line.Comment = "by an admin although clients read the certname as an IP address"
	}
	return line
}

func newUID() node.UID { return node.UID(uuid.Must(uuid.NewV7()).String()) }

// newNode returns a new registration, owned by the caller.
func (k core) newNode(ctx context.Context, spec node.Node) node.Node {
	return node.Register(spec, newUID(), node.CallerOf(ctx).Name, k.now())
}

// live returns the live registration of a name, whoever owns it. It returns false if there is none.
func (k core) live(ctx context.Context, name node.Certname) (node.Node, bool, error) {
	n, err := k.store.Node(ctx, name)
	if errors.Is(err, node.ErrNodeNotFound) {
		return n, false, nil
	}
	return n, err == nil, err
}
