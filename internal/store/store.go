package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// View reads records; its methods are those of one kind of record each. The zero View is not usable; see NewView.
type View struct {
	records
	nodeView
	groupView
	certificateView
	issueView
	revocationView
	tokenView
	auditView
}

// Store reads and writes records in an engine.
type Store struct {
	View
	engine Engine

	// Bound is the longest that a commit is waited for. After that the error
	// wraps node.ErrUnavailable, and ErrUnknownOutcome unless the commit
	// was taken back. It is set before the first use.
	Bound time.Duration
}

// NewView returns a View of a store that is opened read-only. It reads what earlier
// versions wrote, and a store in the middle of a migration. A newer schema is refused.
func NewView(ctx context.Context, r Reader) (View, error) {
	have, err := readSchema(ctx, r)
	if err == nil {
		err = have.check(currentSchema)
	}
	if err == nil && have.Version == 0 {
		err = errors.New("the store is empty: start `espm serve` once")
	}
	if err != nil {
		return View{}, err
	}
	return viewOf(r), nil
}

// New returns the Store in an engine, after bringing its schema up to date.
func New(ctx context.Context, e Engine) (*Store, error) {
	s, err := Open(ctx, e)
	if err != nil {
		return nil, err
	}
	return s, s.Migrate(ctx, Migration{})
}

// Open returns the Store in an engine. A store of an earlier version can be read; Migrate
// has to end before anything but sightings is written. An empty engine gets the current schema. A
// schema newer than this program is refused, and nothing is touched.
func Open(ctx context.Context, e Engine) (*Store, error) {
	s := storeOf(e)
	have, err := readSchema(ctx, e)
	if err != nil {
		return nil, err
	}
	if err := have.check(currentSchema); err != nil {
		return nil, err
	}
	if have.Version == 0 {
		have.Version = currentSchema
		err = s.putSchema(ctx, &have, Batch{})
	}
	return s, err
}

func storeOf(e Engine) *Store { return &Store{View: viewOf(e), engine: e, Bound: DefaultBound} }

// Node returns the live registration of a certname; node.ErrNodeNotFound if there is none.
func (v nodeView) Node(ctx context.Context, name node.Certname) (node.Node, error) {
	n, err := get[node.Node](ctx, v.records, nodeKey(name))
	if errors.Is(err, ErrNoKey) {
		return n, NoNode(name)
	}
	return n, err
}

// What is not there is told in the same words as what a caller may not see.

// NoNode says that a certname has no live registration.
func NoNode(name node.Certname) error {
	return fmt.Errorf("%w: %q is not registered", node.ErrNodeNotFound, name)
}

// NoTombstone says that a certname has no such terminated registration.
func NoTombstone(name node.Certname, uid node.UID) error {
	return fmt.Errorf("%w: %q has no terminated registration %s", node.ErrNodeNotFound, name, uid)
}

// NoGroup says that there is no such group.
func NoGroup(name string) error { return fmt.Errorf("%w: %q", node.ErrGroupNotFound, name) }

// NoCertificate says that espm knows no certificate with the serial.
func NoCertificate(serial node.Serial) error {
	return fmt.Errorf("%w: serial %s", node.ErrCertificateNotFound, serial)
}

// NoRevocation says that there is no such revocation.
func NoRevocation(id string) error { return fmt.Errorf("%w: %s", node.ErrRevocationNotFound, id) }

// Tombstone returns a terminated registration; node.ErrNodeNotFound if there is none.
func (v nodeView) Tombstone(ctx context.Context, name node.Certname, uid node.UID) (node.Node, error) {
	n, err := get[node.Node](ctx, v.records, tombstoneKey(name, uid))
	if errors.Is(err, ErrNoKey) {
		return n, NoTombstone(name, uid)
	}
	return n, err
}

// LastTombstone returns the latest terminated registration of a certname that
// counts; node.ErrNodeNotFound if there is none.
func (v nodeView) LastTombstone(ctx context.Context, name node.Certname, counts func(node.Node) bool) (node.Node, error) {
	last, err := node.Node{}, fmt.Errorf("%w: %q was never registered, or long ago", node.ErrNodeNotFound, name)
	for rec, scanErr := range v.scan(ctx, tombstonePrefix(name), "") {
		if scanErr != nil {
			return node.Node{}, scanErr
		}
		n, decodeErr := decode[node.Node](rec)
		if decodeErr != nil {
			return node.Node{}, decodeErr
		}
		if counts(n) {
			last, err = n, nil
		}
	}
	return last, err
}

// Group returns a group; node.ErrGroupNotFound if there is none.
func (v groupView) Group(ctx context.Context, name string) (node.Group, error) {
	g, err := get[node.Group](ctx, v.records, groupKey(name))
	if errors.Is(err, ErrNoKey) {
		return g, NoGroup(name)
	}
	return g, err
}

// Certificate returns a certificate; node.ErrCertificateNotFound if espm issued or adopted none with that serial.
func (v certificateView) Certificate(ctx context.Context, serial node.Serial) (node.Certificate, error) {
	c, err := get[node.Certificate](ctx, v.records, certKey(serial))
	if errors.Is(err, ErrNoKey) {
		return c, NoCertificate(serial)
	}
	return c, err
}

// Intent returns the open issue intent of a registration; false if there is none.
func (v issueView) Intent(ctx context.Context, uid node.UID) (node.IssueIntent, bool, error) {
	return optional[node.IssueIntent](ctx, v.records, issueKey(uid))
}

// Request returns what a request id did, by its Request.Key; false if it is new.
func (v issueView) Request(ctx context.Context, key string) (node.Request, bool, error) {
	return optional[node.Request](ctx, v.records, requestKey(key))
}

// Revocation returns a revocation by id; node.ErrRevocationNotFound if there is none.
func (v revocationView) Revocation(ctx context.Context, id string) (node.Revocation, error) {
	r, err := get[node.Revocation](ctx, v.records, revocationKey(id))
	if errors.Is(err, ErrNoKey) {
		return r, NoRevocation(id)
	}
	return r, err
}

// ENCSettings is what espm-enc must know while the daemon is down.
type ENCSettings struct {
	UnknownNodes string `json:"unknown_nodes"`
	Command      string `json:"command,omitempty"`
}

// ENC returns the ENC's settings.
func (v View) ENC(ctx context.Context) (ENCSettings, error) {
	return get[ENCSettings](ctx, v.records, encKey)
}

// SetENC keeps the ENC's settings.
func (s *Store) SetENC(ctx context.Context, e ENCSettings) error {
	_, err := s.commit(ctx, Batch{Puts: []Put{{encKey, encode(e)}}})
	return err
}

// NodeEvent tells that the live registration of a certname changed; Node is
// nil where there is none any more.
type NodeEvent struct {
	Certname node.Certname
	Revision int64
	Node     *node.Node
}

// WatchNodes yields changes of live registrations after a revision, as Engine.Watch does.
func (s *Store) WatchNodes(ctx context.Context, after int64) iter.Seq2[NodeEvent, error] {
	return func(yield func(NodeEvent, error) bool) {
		for ev, err := range s.engine.Watch(ctx, nodePrefix, after) {
			if err != nil {
				yield(NodeEvent{}, err)
				return
			}
			out := NodeEvent{Certname: node.Certname(lastPart(ev.Key)), Revision: ev.Revision}
			if !ev.Deleted {
				n, err := decode[node.Node](Record{ev.Key, ev.Value, ev.Revision})
				if err != nil {
					yield(NodeEvent{}, err)
					return
				}
				out.Node = &n
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// WatchNodesOf is WatchNodes of one owner's nodes. To who had a node, one that
// was given to another is gone.
func (s *Store) WatchNodesOf(ctx context.Context, owner string, after int64) iter.Seq2[NodeEvent, error] {
	return func(yield func(NodeEvent, error) bool) {
		for ev, err := range s.engine.Watch(ctx, nodeOwnerPrefix(owner), after) {
			if err != nil {
				yield(NodeEvent{}, err)
				return
			}
			out := NodeEvent{Certname: node.Certname(lastPart(ev.Key)), Revision: ev.Revision}
			if !ev.Deleted {
				n, err := s.Node(ctx, out.Certname)
				if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
					yield(NodeEvent{}, err)
					return
				}
				if err != nil || n.Revision != ev.Revision {
					continue // it changed since the event was read, which another tells
				}
				out.Node = &n
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// RevocationEvent tells that a revocation was ordered, or came a step further.
type RevocationEvent struct {
	Revision   int64
	Revocation node.Revocation
}

// WatchRevocations yields changes of revocations after a revision, as Engine.Watch does. Those that are forgotten are no event.
func (s *Store) WatchRevocations(ctx context.Context, after int64) iter.Seq2[RevocationEvent, error] {
	return func(yield func(RevocationEvent, error) bool) {
		for ev, err := range s.engine.Watch(ctx, revokePrefix, after) {
			if err == nil && ev.Deleted {
				continue
			}
			out := RevocationEvent{Revision: ev.Revision}
			if err == nil {
				out.Revocation, err = decode[node.Revocation](Record{ev.Key, ev.Value, ev.Revision})
			}
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

// WaitIntent waits until a registration has no open issue intent, or ctx is done.
func (s *Store) WaitIntent(ctx context.Context, uid node.UID) error {
	for {
		rev, err := s.Revision(ctx)
		if err != nil {
			return err
		}
		if _, open, err := s.Intent(ctx, uid); err != nil || !open {
			return err
		}
		for _, err := range s.engine.Watch(ctx, issueKey(uid), rev) {
			if err != nil && !errors.Is(err, node.ErrCompacted) {
				return err
			}
			break
		}
	}
}

// Revision returns the store's revision.
func (v View) Revision(ctx context.Context) (int64, error) {
	_, rev, err := v.reader.List(ctx, schemaKey, "", 1)
	return rev, err
}

// Answers returns nil if the store reads, and takes a commit as far as its
// guards: it asks for one whose guard can't hold, so nothing is written, and a
// full disk is no reason to fail. A commit that is under way is waited for.
func (s *Store) Answers(ctx context.Context) error {
	schema, err := s.reader.Get(ctx, schemaKey)
	if err != nil {
		return err
	}
	_, err = s.commit(ctx, Batch{Guards: []Guard{{schemaKey, schema.Revision + 1}}})
	if errors.Is(err, node.ErrStale) {
		return nil
	}
	if err == nil {
		return errors.New("a commit whose guard can't hold was not refused")
	}
	return err
}
