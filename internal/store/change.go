package store

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// Change collects records and their index keys for one commit. A record that was read before is guarded by the
// revision of that read. A new record is guarded by its absence.
type Change struct {
	guards  map[string]int64
	puts    map[string][]byte
	deletes map[string]bool
	index   map[string]bool // index keys: true is put, false deleted
	known   []string        // names of sets, of KnownSet

	orders    []node.Revocation
	lines     []node.AuditLine
	unaudited bool
	err       error
}

// NewChange returns an empty Change.
func NewChange() *Change {
	return &Change{guards: map[string]int64{}, puts: map[string][]byte{}, deletes: map[string]bool{}, index: map[string]bool{}}
}

// Commit applies a change with its audit lines, at least one. If a guard fails, as another writer was first, the
// error wraps node.ErrStale. The change is durable when Commit returns nil. Commit does not stop when ctx is
// cancelled: the steps after a commit, such as waking a worker, need its outcome. It waits at most for Bound. An
// error that wraps ErrUnknownOutcome means neither yes nor no: the change may be applied, now or later. Settle
// returns the outcome when it is known.
func (s *Store) Commit(ctx context.Context, c *Change) (int64, error) {
	ctx = context.WithoutCancel(ctx)
	if c.err != nil {
		return 0, c.err
	}
	if err := c.putLines(); err != nil {
		return 0, err
	}
	var b Batch
	for _, k := range slices.Sorted(maps.Keys(c.guards)) {
		b.Guards = append(b.Guards, Guard{k, c.guards[k]})
	}
	for _, k := range slices.Sorted(maps.Keys(c.puts)) {
		b.Puts = append(b.Puts, Put{k, c.puts[k]})
	}
	b.Deletes = slices.Sorted(maps.Keys(c.deletes))
	for _, k := range slices.Sorted(maps.Keys(c.index)) {
		if c.index[k] {
			b.Index.Puts = append(b.Index.Puts, k)
		} else {
			b.Index.Deletes = append(b.Index.Deletes, k)
		}
	}
	ordered := s.Ordered.begin(c.orders)
	rev, err := s.commit(ctx, b)
	ordered(err)
	return rev, err
}

func (c *Change) put(key string, value []byte) {
	delete(c.deletes, key)
	c.puts[key] = value
}

func (c *Change) remove(key string) {
	delete(c.puts, key)
	c.deletes[key] = true
}

func (c *Change) guard(key string, revision int64) { c.guards[key] = revision }

// reindex moves the index keys from old to now, either of which may be nil.
func (c *Change) reindex(old, now any) {
	ix := reindex(old, now)
	for _, key := range ix.Deletes {
		c.index[key] = false
	}
	for _, key := range ix.Puts {
		c.index[key] = true
	}
}

// PutNode writes a live registration in place of old, which is nil for a new one, and guards old. If the node joins a
// set of groups, or changes its own values in it, PutNode changes the mark of the set: a concurrent write of a group
// then fails. A node that leaves a set needs no mark, as it can't cause a conflict.
func (c *Change) PutNode(old *node.Node, n node.Node) {
	key, record := nodeKey(n.Certname), encode(n)
	changed := old == nil || !bytes.Equal(encode(old.Classification), encode(n.Classification))
	if old == nil {
		c.guard(key, 0)
		c.reindex(nil, n)
	} else {
		c.guard(key, old.Revision)
		c.reindex(*old, n)
	}
	if changed {
		c.limited("classification", string(n.Certname), record)
	}
	if changed || !slices.Equal(old.Groups, n.Groups) {
		c.joinSet(n.Groups)
	}
	c.put(key, record)
}

// RemoveNode removes a live registration.
func (c *Change) RemoveNode(old node.Node) {
	c.guard(nodeKey(old.Certname), old.Revision)
	c.reindex(old, nil)
	c.remove(nodeKey(old.Certname))
	c.remove(seenKey(old.Certname))
}

// GuardGroups makes the change fail if any group is written after the mark was read.
func (c *Change) GuardGroups(m GroupsMark) { c.guard(groupsMark, int64(m)) }

// PutGroup writes a group in place of old, which is nil for a new one. The commit fails if any group is written after
// the mark was read.
func (c *Change) PutGroup(m GroupsMark, old *node.Group, g node.Group) {
	key := groupKey(g.Name)
	if old == nil {
		c.guard(key, 0)
		c.reindex(nil, g)
	} else {
		c.guard(key, old.Revision)
		c.reindex(*old, g)
	}
	c.GuardGroups(m)
	c.put(groupsMark, nil)
	record := encode(g)
	c.limited("classification", g.Name, record)
	c.put(key, record)
}

// RemoveGroup deletes a group, guarded as PutGroup.
func (c *Change) RemoveGroup(m GroupsMark, old node.Group) {
	c.guard(groupKey(old.Name), old.Revision)
	c.reindex(old, nil)
	c.GuardGroups(m)
	c.put(groupsMark, nil)
	c.remove(groupKey(old.Name))
}

// PutTombstone writes the record of a terminated registration.
func (c *Change) PutTombstone(n node.Node) {
	c.put(tombstoneKey(n.Certname, n.UID), encode(n))
	c.reindex(nil, pastLife(n))
}

// PutCertificate writes a certificate, guarded by its Revision (0: a new one).
func (c *Change) PutCertificate(cert node.Certificate) { c.putCertificate(nil, cert) }

// SetCertificateOwner writes a certificate with another owner.
func (c *Change) SetCertificateOwner(cert node.Certificate, owner string) {
	given := cert
	given.Owner = owner
	c.putCertificate(cert, given)
}

func (c *Change) putCertificate(old any, cert node.Certificate) {
	c.guard(certKey(cert.Serial), cert.Revision)
	c.put(certKey(cert.Serial), encode(cert))
	c.reindex(old, cert)
}

// RemoveCertificate removes a certificate. The commit fails if the record changes after it was read, as by an order
// to revoke it.
func (c *Change) RemoveCertificate(cert node.Certificate) {
	c.guard(certKey(cert.Serial), cert.Revision)
	c.remove(certKey(cert.Serial))
	c.reindex(cert, nil)
}

// PutIntent writes a new issue intent.
func (c *Change) PutIntent(i node.IssueIntent) {
	c.guard(issueKey(i.UID), 0)
	c.put(issueKey(i.UID), encode(i))
}

// RemoveIntent closes an issue intent.
func (c *Change) RemoveIntent(i node.IssueIntent) {
	c.guard(issueKey(i.UID), i.Revision)
	c.remove(issueKey(i.UID))
}

// PutRequest writes a new request id.
func (c *Change) PutRequest(r node.Request) {
	c.guard(requestKey(r.Key()), 0)
	c.put(requestKey(r.Key()), encode(r))
}

// RemoveRequest removes a request id, by its Request.Key.
func (c *Change) RemoveRequest(key string) { c.remove(requestKey(key)) }

// PutRevocation writes a revocation, guarded by its Revision (0: a new one).
func (c *Change) PutRevocation(r node.Revocation) {
	if r.Revision == 0 {
		c.putRevocation(nil, r)
		return
	}
	was := r
	was.Receipt, was.Drop, was.Impossible = nil, nil, nil // only an open revocation is written again
	c.putRevocation(was, r)
}

// SetRevocationOwner writes a revocation with another owner.
func (c *Change) SetRevocationOwner(r node.Revocation, owner string) {
	given := r
	given.Owner = owner
	c.putRevocation(r, given)
}

func (c *Change) putRevocation(old any, r node.Revocation) {
	c.orders = append(c.orders, r)
	c.guard(revocationKey(r.ID), r.Revision)
	c.put(revocationKey(r.ID), encode(r))
	c.reindex(old, r)
}

// RemoveRevocation removes a revocation.
func (c *Change) RemoveRevocation(r node.Revocation) {
	c.remove(revocationKey(r.ID))
	c.reindex(r, nil)
}

// RemoveTombstone removes a terminated registration.
func (c *Change) RemoveTombstone(n node.Node) {
	c.remove(tombstoneKey(n.Certname, n.UID))
	c.reindex(pastLife(n), nil)
}
