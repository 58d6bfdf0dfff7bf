package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// View reads records. The zero View is not usable; see NewView.
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

	// Ordered has the orders that were committed since the store was opened, and those that its Read took.
	Ordered *Ordered

	// Bound is the longest wait for a commit. After it the error wraps node.ErrUnavailable and, unless the commit was
	// withdrawn, ErrUnknownOutcome. Set it before the first use.
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

// Open returns the Store in an engine. A store of an earlier version can be read. Until Migrate has ended, only
// sightings may be written. An empty engine gets the current schema. A newer schema is refused, and nothing changes.
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

func storeOf(e Engine) *Store {
	return &Store{View: viewOf(e), engine: e, Ordered: newOrdered(), Bound: DefaultBound}
}

// Node returns the live registration of a certname; node.ErrNodeNotFound if there is none.
func (v nodeView) Node(ctx context.Context, name node.Certname) (node.Node, error) {
	n, err := get[node.Node](ctx, v.records, nodeKey(name))
	if errors.Is(err, ErrNoKey) {
		return n, NoNode(name)
	}
	return n, err
}

// The errors below are also those for a record that the caller may not see: it can't tell the difference.

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

// LastTombstone returns the latest terminated registration of a certname for which counts returns true;
// node.ErrNodeNotFound if there is none.
func (v nodeView) LastTombstone(ctx context.Context, name node.Certname, counts func(node.Node) bool) (node.Node, error) {
	last, err := node.Node{}, fmt.Errorf("%w: %q was never registered, or its records have expired", node.ErrNodeNotFound, name)
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

// Request returns the record of a request id, by its Request.Key; false if the id is new.
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

// ENCSettings are the settings that espm-enc needs while the daemon is down.
type ENCSettings struct {
	UnknownNodes string `json:"unknown_nodes"`
	Command      string `json:"command,omitempty"`
}

// ENC returns the ENC's settings.
func (v View) ENC(ctx context.Context) (ENCSettings, error) {
	return get[ENCSettings](ctx, v.records, encKey)
}

// SetENC stores the ENC's settings.
func (s *Store) SetENC(ctx context.Context, e ENCSettings) error {
	_, err := s.commit(ctx, Batch{Puts: []Put{{encKey, encode(e)}}})
	return err
}

// NodeEvent is a change of a certname's live registration. Node is nil if the registration was removed.
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

// WatchNodesOf is WatchNodes for one owner's nodes. If a node gets another owner, the old owner gets the event of a
// removed node.
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
					continue // the node changed after the event; a later event follows
				}
				out.Node = &n
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// RevocationEvent is a new revocation or a change of one.
type RevocationEvent struct {
	Revision   int64
	Revocation node.Revocation
}

// WatchRevocations yields changes of revocations after a revision, as Engine.Watch does. A removed record gives no event.
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

// Answers checks that the store answers reads and commits. Its commit has a guard that can't hold, so nothing is
// written, and a full disk is no failure. Answers waits for commits under way.
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
