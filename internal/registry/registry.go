// Package registry holds what espm does: nodes are registered, classified,
// provisioned and terminated, groups are kept. It decides what is committed
// together and in which order the outside world is changed.
//
// # Provisioning
//
//	state                                     a crash here leaves
//	1  intent committed, with the node        an intent; nothing was signed
//	2  the authority has signed               an intent; a certificate that the authority knows
//	3  certificate committed, intent closed   a provisioned node
//	4  answered                               the same
//
// An intent that is found at start, or that could not be brought to its end,
// is settled: the authority is asked what became of it. Where the caller holds the
// private key (it sent a CSR) the certificate is adopted. Else the key is lost, so
// the certificate is revoked, and a registration that came with the intent
// goes with it. A crash between 3 and 4 leaves a provisioned node whose caller has no
// answer: a retry with the same request id revokes that certificate and issues another.
//
// # Importing
//
// A certificate that the authority signed for others is adopted in one commit,
// with its registration; see Import. Nothing is revoked, so there is nothing to settle.
// Once adopted it is a certificate like any other: a terminate revokes it.
//
// # Terminating
//
//	1  one commit: the node is out, its tombstone and the order to revoke are in
//	2  the authority has revoked and published      (package revoke)
//	3  the receipt is committed
//
// A node whose launch deadline passed is terminated in the same way; see
// docs/durability.md for the states and crashes.
//
// # Names that live again
//
// An authority that can only revoke by name (ca.Traits) must be done with
// all earlier certificates of a name before it signs the next. So such an issue waits for
// the name's pending revocations and for its open intents, which may yet become
// revocations: see fence. The queue checks it once more: it refuses to revoke, by the name, a
// certificate whose name has a newer one.
package registry

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/singleflight"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Keys makes private keys.
type Keys interface {
	Take(ctx context.Context, alg ca.KeyAlgorithm) (crypto.Signer, error)
}

// Revocations is the queue of revocations; see revoke.Queue.
type Revocations interface {
	Order(c *store.Change, order node.Revocation) node.Revocation
	Kick()
	Retry(ctx context.Context, id string) (node.Revocation, error)
	Drop(ctx context.Context, id, comment string) (node.Revocation, error)
	Down() *node.Failure
	Wait(ctx context.Context, revs []node.Revocation) ([]node.Revocation, error)
}

// Options are a Registry's parts and settings. All but Protected, and what has
// a default, are required; Signed for Import alone.
type Options struct {
	Store       *store.Store
	Authority   ca.Authority
	Signed      Signed // the same authority
	Keys        Keys
	Revocations Revocations
	Puppet      bootstrap.Server
	Algorithm   ca.KeyAlgorithm // of a key, where the caller names none
	Protected   []string        // certnames that are never terminated, besides Puppet.Name and the authority's own
	Principals  []string        // certnames that callers are known by: only an admin has certificates of them issued
	Served      func() []string // names that espm's own certificate is good for, likewise; the default has none
	TTL         time.Duration   // of a certificate whose request names none; default ca.DefaultTTL
	Now         func() time.Time
	Log         logrus.FieldLogger

	Sightings   *Sightings                             // the default knows what is stored
	RunInterval time.Duration                          // between two runs of an agent, at most; default half an hour
	Stage       func(stage string, took time.Duration) // is told of each stage of an issue that came to its end; the default tells nobody
	Uptime      func() time.Duration                   // does not go back or jump as a clock may; the default is Now's monotonic clock
}

// Registry is espm's use cases. Its methods may be called at once. What a
// method has changed is durable when it returns nil.
type Registry struct {
	Options

	*groups

	protected atomic.Pointer[[]string] // Options.Protected, or what took its place

	launches launches // for runLaunches alone

	flights singleflight.Group // issues by request id
	calls   sync.WaitGroup     // flights that somebody waits for, or waited until he had gone
	answers answers

	mu       sync.Mutex
	issuing  map[node.UID]bool // intents that a call is at work on
	unsettle chan struct{}     // holds one: an intent was left open
	ended    chan struct{}     // closed when Run has ended
}

// New returns a Registry. Run settles what an earlier process left open.
func New(o Options) *Registry {
	if o.Sightings == nil {
		o.Sightings = NewSightings(o.Store, SeenInStore(o.Store), o.Now, o.Log)
	}
	o.TTL = cmp.Or(o.TTL, ca.DefaultTTL)
	if o.Served == nil {
		o.Served = func() []string { return nil }
	}
	if o.Stage == nil {
		o.Stage = func(string, time.Duration) {}
	}
	o.RunInterval = cmp.Or(o.RunInterval, defaultRunInterval)
	if o.Uptime == nil {
		began := o.Now()
		o.Uptime = func() time.Duration { return o.Now().Sub(began) }
	}
	r := &Registry{
		Options:  o,
		groups:   &groups{store: o.Store, clock: o.Now},
		answers:  answers{now: o.Now},
		issuing:  map[node.UID]bool{},
		unsettle: make(chan struct{}, 1),
		ended:    make(chan struct{}),
	}
	r.SetProtected(o.Protected)
	return r
}

// SetProtected changes the certnames that are never terminated, of Options.Protected. What is under way may go by the old ones.
func (r *Registry) SetProtected(names []string) { r.protected.Store(&names) }

// maxAttempts bounds how often a change is computed anew because another was
// committed in between.
const maxAttempts = 20

// retry calls change until it does not fail for being stale.
func retry(change func() error) error {
	var err error
	for range maxAttempts {
		if err = change(); !errors.Is(err, node.ErrStale) {
			return err
		}
	}
	return fmt.Errorf("%w: others keep changing the same records, try again (%v)", node.ErrUnavailable, err)
}

// line returns the audit line of an act on a registration.
func (r *Registry) line(ctx context.Context, action node.Action, n node.Node) node.AuditLine {
	return audit.OfNode(ctx, r.Now(), action, n)
}

func newUID() node.UID { return node.UID(uuid.Must(uuid.NewV7()).String()) }

// CheckRequestID keeps request ids printable and short; none is as good. The error is node.ErrInvalid.
func CheckRequestID(id string) error {
	if len(id) > 128 {
		return node.Invalid("request_id", "at most 128 bytes, has %d", len(id))
	}
	for _, r := range id {
		if r <= ' ' || r > '~' {
			return node.Invalid("request_id", "printable ASCII without spaces only, not %q", r)
		}
	}
	return nil
}

// Register registers and classifies a node that has no certificate; it is the
// caller's. Errors: node.ErrInvalid, ErrNotPermitted, ErrNodeExists, ErrGroupNotFound, ErrConflict,
// ErrRequestReused, ErrRequestSpent.
func (r *Registry) Register(ctx context.Context, n node.Node, requestID string, validateOnly bool) (node.Node, error) {
	if err := node.Join(n.Validate(), CheckRequestID(requestID)); err != nil {
		return n, err
	}
	if err := r.mayName(ctx, n.Certname); err != nil {
		return n, err
	}
	n = r.newNode(ctx, n)
	request, err := newRequest(ctx, n, requestID, "register", n.Spec())
	if err != nil {
		return n, err
	}
	err = retry(func() error {
		earlier, err := r.earlier(ctx, request)
		if err != nil {
			return err
		}
		if earlier != nil {
			n = *earlier
			return nil
		}
		return r.addNode(ctx, &n, request, nil, validateOnly)
	})
	return n, err
}

// newNode returns a registration of the caller's.
func (r *Registry) newNode(ctx context.Context, spec node.Node) node.Node {
	return node.Register(spec, newUID(), node.CallerOf(ctx).Name, r.Now())
}

// addNode commits a new registration, with an issue intent where it is being
// provisioned. n gets its revision.
func (r *Registry) addNode(ctx context.Context, n *node.Node, request *node.Request, intent *node.IssueIntent, validateOnly bool) error {
	_, err := r.Store.Node(ctx, n.Certname)
	if err == nil {
		return fmt.Errorf("%w: certname %q is registered", node.ErrNodeExists, n.Certname)
	}
	if !errors.Is(err, node.ErrNodeNotFound) {
		return err
	}
	c := store.NewChange()
	line := r.line(ctx, node.ActionRegister, *n)
	if request != nil {
		n.Requests = []string{request.Key()}
		line.RequestID = request.ID
		c.PutRequest(*request)
	}
	if intent != nil {
		line.Action, line.Serial = node.ActionProvision, intent.Serial
		c.PutIntent(*intent)
	}
	c.Audit(line)
	return r.commitNode(ctx, c, nil, n, validateOnly)
}

// commitNode checks a node against its groups, and against what the caller is
// confined to, and commits it with the change. n gets its revision.
func (r *Registry) commitNode(ctx context.Context, c *store.Change, old *node.Node, n *node.Node, validateOnly bool) error {
	a := accessOf(ctx)
	if err := a.mayJoin(old, *n); err != nil {
		return err
	}
	merged, err := r.groups.admit(ctx, c, *n)
	if err != nil {
		return err
	}
	if err := a.mayLive(merged.Environment, old, *n); err != nil {
		return err
	}
	c.PutNode(old, *n)
	if err := c.Err(); err != nil || validateOnly {
		return err
	}
	rev, err := r.Store.Commit(ctx, c)
	if err != nil {
		return fmt.Errorf("node %q: %w", n.Certname, err)
	}
	n.Revision = rev
	return nil
}

// Get returns the live registration of a certname or, with a uid, that one,
// terminated or not. Error: node.ErrNodeNotFound.
func (r *Registry) Get(ctx context.Context, name node.Certname, uid node.UID) (node.Node, error) {
	n, err := r.node(ctx, name)
	if err == nil && (uid == "" || n.UID == uid) {
		n.LastSeenAt, err = r.Sightings.last(ctx, n)
	}
	if uid == "" || err == nil && n.UID == uid {
		return n, err
	}
	if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
		return n, err
	}
	return r.pastLife(ctx, name, uid)
}

// NodeQuery selects nodes.
type NodeQuery struct {
	store.NodeFilter
	// NotSeenFor selects those that were not seen, or registered, for so long; 0: all.
	NotSeenFor time.Duration
}

// List returns a page of live nodes, as store.View.Nodes does: it looks at up
// to limit nodes that the labels and the group select, however few of them were not seen.
func (r *Registry) List(ctx context.Context, q NodeQuery, after string, limit int) (store.Page[node.Node], error) {
	owner, err := accessOf(ctx).scope()
	if err != nil {
		return store.Page[node.Node]{}, err
	}
	if owner != "" && q.Owner != "" && q.Owner != owner {
		rev, err := r.Store.Revision(ctx)
		return store.Page[node.Node]{Revision: rev}, err
	}
	q.Owner = cmp.Or(owner, q.Owner)
	page, err := r.Store.Nodes(ctx, q.NodeFilter, after, limit)
	if err != nil {
		return page, err
	}
	since := r.Now().Add(-q.NotSeenFor)
	found := page.Items[:0]
	for _, n := range page.Items {
		if n.LastSeenAt, err = r.Sightings.last(ctx, n); err != nil {
			return page, err
		}
		if q.NotSeenFor == 0 || !n.CreatedAt.After(since) && !n.LastSeenAt.After(since) {
			found = append(found, n)
		}
	}
	page.Items = found
	return page, nil
}

// Wait waits for the issues that go on although their callers have gone. No
// other call may be under way.
func (r *Registry) Wait() { r.calls.Wait() }
