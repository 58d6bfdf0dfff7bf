package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// Page is one page of a list: the records, the revision they were read at,
// and the position after which the next page starts (empty: none follows).
type Page[T any] struct {
	Items    []T
	Next     string
	Revision int64
}

// NodeFilter selects nodes: those that have all labels, are directly in the
// group and are the owner's, where given.
type NodeFilter struct {
	Labels map[string]string
	Group  string
	Owner  string
}

func (f NodeFilter) match(n node.Node) bool {
	for k, v := range f.Labels {
		if have, ok := n.Labels[k]; !ok || have != v {
			return false
		}
	}
	if f.Owner != "" && n.Owner != f.Owner {
		return false
	}
	if f.Group == "" {
		return true
	}
	for _, g := range n.Groups {
		if g == f.Group {
			return true
		}
	}
	return false
}

// indexes returns the prefixes of the indexes that have the selected nodes; none if all nodes are selected. The
// owner's index is the first, so that a page token never has another owner's certname.
func (f NodeFilter) indexes() (prefixes []string) {
	if f.Owner != "" {
		prefixes = append(prefixes, nodeOwnerPrefix(f.Owner))
	}
	if f.Group != "" {
		prefixes = append(prefixes, memberPrefix(f.Group))
	}
	for _, k := range slices.Sorted(maps.Keys(f.Labels)) {
		prefixes = append(prefixes, labelPrefix(k, f.Labels[k]))
	}
	return prefixes
}

// A page ends early if its records are large: each may have 1 MiB, and a page of a thousand must not need 1 GiB.
const (
	pageBytes  = 4 << 20
	readAtOnce = 50 // records of one read, so that a page exceeds pageBytes by little
)

// Nodes returns up to limit live nodes after a certname, in order of certname.
// With a filter the page may be short although more follow.
func (v nodeView) Nodes(ctx context.Context, f NodeFilter, after string, limit int) (Page[node.Node], error) {
	switch indexes := f.indexes(); len(indexes) {
	case 0:
		return list[node.Node](ctx, v.records, nodePrefix, after, limit)
	case 1:
		return follow(ctx, v.records, indexes[0], after, limit, func(key string) string { return nodeKey(node.Certname(lastPart(key))) }, f.match)
	default:
		return v.shared(ctx, indexes, after, limit, f.match)
	}
}

// Groups returns up to limit groups after a name, in order of name.
func (v groupView) Groups(ctx context.Context, after string, limit int) (Page[node.Group], error) {
	return list[node.Group](ctx, v.records, groupPrefix, after, limit)
}

// Certificates returns up to limit certificates in order of serial.
func (v certificateView) Certificates(ctx context.Context, after string, limit int) (Page[node.Certificate], error) {
	return list[node.Certificate](ctx, v.records, certPrefix, after, limit)
}

// CertificatesOf returns up to limit certificates of a certname, in order of
// registration. after is a page's Next.
func (v certificateView) CertificatesOf(ctx context.Context, name node.Certname, after string, limit int) (Page[node.Certificate], error) {
	return follow(ctx, v.records, certOfPrefix(name), after, limit,
		func(key string) string { return certKey(node.Serial(lastPart(key))) },
		func(node.Certificate) bool { return true })
}

// CertificatesOwned returns up to limit certificates of one owner, in order of
// certname and registration; with a name, of that alone. after is a page's Next.
func (v certificateView) CertificatesOwned(ctx context.Context, owner string, name node.Certname, after string, limit int) (Page[node.Certificate], error) {
	index := certOwnerPrefix(owner)
	if name != "" {
		index += string(name) + "/"
	}
	return follow(ctx, v.records, index, after, limit,
		func(key string) string { return certKey(node.Serial(lastPart(key))) },
		func(c node.Certificate) bool { return c.Owner == owner })
}

// list pages through the records with a prefix.
func list[T any](ctx context.Context, v records, prefix, after string, limit int) (Page[T], error) {
	return pages(ctx, v, prefix, after, limit, func(rec Record) (T, int, bool, error) {
		item, err := decode[T](rec)
		return item, len(rec.Value), true, err
	})
}

// follow pages through an index, and reads the records that its keys point to. It leaves out records that do not
// match, and those removed after the index was read.
func follow[T any](ctx context.Context, v records, index, after string, limit int, target func(string) string, match func(T) bool) (Page[T], error) {
	return pages(ctx, v, index, after, limit, func(rec Record) (T, int, bool, error) {
		var zero T
		found, err := v.reader.Get(ctx, target(rec.Key))
		if errors.Is(err, ErrNoKey) {
			return zero, 0, false, nil
		}
		if err != nil {
			return zero, 0, false, err
		}
		item, err := decode[T](found)
		return item, len(found.Value), err == nil && match(item), err
	})
}

// pages collects one page. For each record with the prefix, read returns an item, its size, and whether the item
// belongs to the page.
func pages[T any](ctx context.Context, v records, prefix, after string, limit int, read func(Record) (T, int, bool, error)) (Page[T], error) {
	var page Page[T]
	if after != "" {
		after = prefix + after
	}
	for seen, size := 0, 0; seen < limit; {
		n := min(readAtOnce, limit-seen)
		recs, rev, err := v.reader.List(ctx, prefix, after, n)
		if err != nil {
			return Page[T]{}, err
		}
		if page.Revision == 0 {
			page.Revision = rev
		}
		for _, rec := range recs {
			item, bytes, belongs, err := read(rec)
			if err != nil {
				return Page[T]{}, err
			}
			after = rec.Key
			if belongs {
				page.Items = append(page.Items, item)
			}
			if size += bytes; size >= pageBytes {
				page.Next = after[len(prefix):]
				return page, nil
			}
		}
		if len(recs) < n {
			return page, nil
		}
		seen += n
	}
	page.Next = after[len(prefix):]
	return page, nil
}

// Members yields the certnames directly in a group.
func (v groupView) Members(ctx context.Context, group string) iter.Seq2[node.Certname, error] {
	return scanLast[node.Certname](ctx, v.records, memberPrefix(group))
}

// Children yields the groups that inherit a group directly.
func (v groupView) Children(ctx context.Context, group string) iter.Seq2[string, error] {
	return scanLast[string](ctx, v.records, childPrefix(group))
}

func scanLast[T ~string](ctx context.Context, v records, prefix string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for rec, err := range v.scan(ctx, prefix, "") {
			if !yield(T(lastPart(rec.Key)), err) || err != nil {
				return
			}
		}
	}
}

// Intents yields the open issue intents.
func (v issueView) Intents(ctx context.Context) iter.Seq2[node.IssueIntent, error] {
	return func(yield func(node.IssueIntent, error) bool) {
		for rec, err := range v.scan(ctx, issuePrefix, "") {
			if err != nil {
				yield(node.IssueIntent{}, err)
				return
			}
			if !yield(decode[node.IssueIntent](rec)) {
				return
			}
		}
	}
}

// RevocationFilter selects revocations.
type RevocationFilter struct {
	Certname node.Certname // all registrations of it; empty: any
	Open     bool          // only open ones
	Failed   bool          // only open ones that the authority refused
	// Impossible: only those that the authority can't carry out.
	Impossible bool
	Owner      string // only this owner's; empty: any
}

func (f RevocationFilter) match(r node.Revocation) bool {
	if f.Owner != "" && r.Owner != f.Owner {
		return false
	}
	return (f.Certname == "" || r.Certname == f.Certname) && (!f.Open || r.Open()) && (!f.Failed || r.Open() && r.Failure != nil) &&
		(!f.Impossible || r.Impossible != nil)
}

// Revocations returns up to limit revocations after a page's Next, oldest first. Those of one certname, of any owner,
// are sorted by registration. With a filter, a page may be short although more follow.
func (v revocationView) Revocations(ctx context.Context, f RevocationFilter, after string, limit int) (Page[node.Revocation], error) {
	index := pendingPrefix
	switch {
	case f.Owner != "":
		index = revocationOwnerPrefix(f.Owner)
	case f.Certname != "":
		index = revocationsOfPrefix(f.Certname)
	case f.Impossible:
		index = impossiblePrefix
	case !f.Open && !f.Failed:
		return list[node.Revocation](ctx, v.records, revokePrefix, after, limit)
	}
	return follow(ctx, v.records, index, after, limit, func(key string) string { return revocationKey(lastPart(key)) }, f.match)
}

// CountPending returns how many revocations are open, and the oldest of them; nil if there is none.
func (v revocationView) CountPending(ctx context.Context) (n int, oldest *node.Revocation, err error) {
	for _, err := range v.scan(ctx, pendingPrefix, "") {
		if err != nil {
			return 0, nil, err
		}
		n++
	}
	first, err := v.Pending(ctx, "", 1)
	if err == nil && len(first) > 0 {
		oldest = &first[0]
	}
	return n, oldest, err
}

// CountImpossible returns how many revocations the authority can't carry out.
func (v revocationView) CountImpossible(ctx context.Context) (n int, err error) {
	for _, err := range v.scan(ctx, impossiblePrefix, "") {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// Pending returns up to limit open revocations that were ordered
// after the one with the id given (empty: from the start), oldest first.
func (v revocationView) Pending(ctx context.Context, after string, limit int) ([]node.Revocation, error) {
	if after != "" {
		after = pendingPrefix + after
	}
	return v.revocations(ctx, v.scan(ctx, pendingPrefix, after), limit)
}

// RevocationsOf returns the revocations of a registration, oldest first.
func (v revocationView) RevocationsOf(ctx context.Context, name node.Certname, uid node.UID) ([]node.Revocation, error) {
	return v.revocations(ctx, v.scan(ctx, revocationOfPrefix(name, uid), ""), math.MaxInt)
}

// PendingOf returns the open revocations of a certname, all its registrations.
func (v revocationView) PendingOf(ctx context.Context, name node.Certname) ([]node.Revocation, error) {
	all, err := v.AllRevocationsOf(ctx, name)
	return slices.DeleteFunc(all, func(r node.Revocation) bool { return !r.Open() }), err
}

// AllRevocationsOf returns the revocations of a certname, all its
// registrations, those with a receipt until they are forgotten.
func (v revocationView) AllRevocationsOf(ctx context.Context, name node.Certname) ([]node.Revocation, error) {
	return v.revocations(ctx, v.scan(ctx, revocationsOfPrefix(name), ""), math.MaxInt)
}

// revocations follows keys of an index to at most limit revocations.
func (v revocationView) revocations(ctx context.Context, index iter.Seq2[Record, error], limit int) ([]node.Revocation, error) {
	return resolve[node.Revocation](ctx, v.records, index, limit, revocationKey)
}

// CertificatesOfLife returns all certificates of a registration that are still in the store, revoked ones too.
func (v certificateView) CertificatesOfLife(ctx context.Context, name node.Certname, uid node.UID) ([]node.Certificate, error) {
	certs, err := resolve[node.Certificate](ctx, v.records, v.scan(ctx, certOfLifePrefix(name, uid), ""), math.MaxInt,
		func(serial string) string { return certKey(node.Serial(serial)) })
	if err != nil {
		return nil, fmt.Errorf("certificates of %q: %w", name, err)
	}
	return certs, nil
}

// resolve reads at most limit records that keys of an index point to by their last part. It leaves out records that
// were removed after the index was read.
func resolve[T any](ctx context.Context, v records, index iter.Seq2[Record, error], limit int, target func(last string) string) ([]T, error) {
	var out []T
	for rec, err := range index {
		if err != nil {
			return nil, err
		}
		item, err := get[T](ctx, v, target(lastPart(rec.Key)))
		if errors.Is(err, ErrNoKey) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if out = append(out, item); len(out) == limit {
			break
		}
	}
	return out, nil
}

// TombstonesBefore yields tombstones of registrations terminated before t, oldest first.
func (v nodeView) TombstonesBefore(ctx context.Context, t time.Time) iter.Seq2[node.Node, error] {
	limit := tombstoneTimePrefix + t.UTC().Format(time.RFC3339)
	return func(yield func(node.Node, error) bool) {
		for rec, err := range v.scan(ctx, tombstoneTimePrefix, "") {
			if err != nil {
				yield(node.Node{}, err)
				return
			}
			if rec.Key >= limit {
				return
			}
			n, err := v.tombstoneAt(ctx, rec.Key)
			if !yield(n, err) {
				return
			}
		}
	}
}

// tombstoneAt follows a key of the time index.
func (v nodeView) tombstoneAt(ctx context.Context, key string) (node.Node, error) {
	uid := lastPart(key)
	name := lastPart(key[:len(key)-len(uid)-1])
	return v.Tombstone(ctx, node.Certname(name), node.UID(uid))
}

// GroupsMark is the revision at which any group was last written.
type GroupsMark int64

// GroupsMark reads the mark, to be guarded by a Change.
func (v groupView) GroupsMark(ctx context.Context) (GroupsMark, error) {
	rev, err := v.revision(ctx, groupsMark)
	return GroupsMark(rev), err
}

// revision returns the revision of a key, 0 if it is absent.
func (v records) revision(ctx context.Context, key string) (int64, error) {
	rec, err := v.reader.Get(ctx, key)
	if errors.Is(err, ErrNoKey) {
		return 0, nil
	}
	return rec.Revision, err
}
