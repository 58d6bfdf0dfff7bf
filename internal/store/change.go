package store

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

// Change gathers records to write and their index keys, to be committed as
// one. A record that was read before is guarded by the revision it was
// read at, a new one by its absence.
type Change struct {
	guards  map[string]int64
	puts    map[string][]byte
	deletes map[string]bool

	lines     []node.AuditLine
	unaudited bool
}

// NewChange returns an empty Change.
func NewChange() *Change {
	return &Change{guards: map[string]int64{}, puts: map[string][]byte{}, deletes: map[string]bool{}}
}

// Commit applies a change and its audit lines, of which there must be one. A guard that fails, as somebody else was faster,
// gives an error that wraps node.ErrStale. Durability is Engine.Commit's. Commit
// waits although ctx is cancelled: the steps after a commit, such as
// a lock that is released or a worker that is woken, need its outcome. It waits
// for Bound at most. An error that wraps ErrUnknownOutcome means that the change may be
// made, or may still be made: a caller treats it as neither. Settle tells later.
func (s *Store) Commit(ctx context.Context, c *Change) (int64, error) {
	ctx = context.WithoutCancel(ctx)
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
	return s.commit(ctx, b)
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

// PutNode writes a live registration in place of old (nil: a new one).
func (c *Change) PutNode(old *node.Node, n node.Node) {
	c.replaceNode(old, &n)
	c.put(nodeKey(n.Certname), encode(n))
	if n.Owner != "" {
		c.put(nodeOwnerKey(n), nil)
	}
}

// RemoveNode takes a live registration out.
func (c *Change) RemoveNode(old node.Node) {
	c.replaceNode(&old, nil)
	c.remove(nodeKey(old.Certname))
	c.remove(seenKey(old.Certname))
}

// replaceNode guards old and moves the index keys from old to n. The groups
// of a node that joins them, or that no longer sets what it did, are marked, so
// that a write to the group that did not see it fails. A node that leaves can
// do no harm to a group.
func (c *Change) replaceNode(old, n *node.Node) {
	before, after := map[string]string{}, map[string]string{}
	if old != nil && n != nil && !bytes.Equal(encode(old.Classification), encode(n.Classification)) {
		for _, g := range n.Groups {
			c.markUse(g)
		}
	}
	if old != nil {
		c.guard(nodeKey(old.Certname), old.Revision)
		nodeIndexes(before, *old)
	}
	if n != nil {
		if old == nil {
			c.guard(nodeKey(n.Certname), 0)
		}
		nodeIndexes(after, *n)
	}
	c.moveIndexes(before, after)
}

// nodeIndexes sets the index keys of a live node, each with the group it is about, if any.
func nodeIndexes(ix map[string]string, n node.Node) {
	for k, v := range n.Labels {
		ix[labelPrefix(k, v)+string(n.Certname)] = ""
	}
	for _, g := range n.Groups {
		ix[memberPrefix(g)+string(n.Certname)] = g
	}
	if n.Unclaimed() {
		ix[claimKey(n)] = ""
	}
	if n.Owner != "" {
		ix[nodeOwnerKey(n)] = ""
	}
}

func (c *Change) moveIndexes(before, after map[string]string) {
	for key := range before {
		if _, stays := after[key]; !stays {
			c.remove(key)
		}
	}
	for key, group := range after {
		if _, was := before[key]; was {
			continue
		}
		c.put(key, nil)
		c.markUse(group)
	}
}

func (c *Change) markUse(group string) {
	if group != "" {
		c.put(groupUseMark(group), nil)
	}
}

// GuardGroups makes the change fail if any group is written after the mark was read.
func (c *Change) GuardGroups(m GroupsMark) { c.guard(groupsMark, int64(m)) }

// PutGroup writes a group in place of old (nil: a new one). It fails if any
// other group is written after the mark was read.
func (c *Change) PutGroup(m GroupsMark, old *node.Group, g node.Group) {
	c.replaceGroup(m, old, &g)
	c.put(groupKey(g.Name), encode(g))
}

// RemoveGroup deletes a group, guarded as PutGroup.
func (c *Change) RemoveGroup(m GroupsMark, old node.Group) {
	c.replaceGroup(m, &old, nil)
	c.remove(groupKey(old.Name))
	c.remove(groupUseMark(old.Name))
}

func (c *Change) replaceGroup(m GroupsMark, old, g *node.Group) {
	before, after := map[string]string{}, map[string]string{}
	if old != nil {
		c.guard(groupKey(old.Name), old.Revision)
		for _, p := range old.Parents {
			before[childPrefix(p)+old.Name] = p
		}
	}
	if g != nil {
		if old == nil {
			c.guard(groupKey(g.Name), 0)
		}
		for _, p := range g.Parents {
			after[childPrefix(p)+g.Name] = p
		}
	}
	c.moveIndexes(before, after)
	c.GuardGroups(m)
	c.put(groupsMark, nil)
}

// GuardUse makes the change fail if a node or a group joins a group, or a
// node of it sets something else, after the mark was read.
func (c *Change) GuardUse(group string, m UseMark) { c.guard(groupUseMark(group), int64(m)) }

// PutTombstone keeps a terminated registration.
func (c *Change) PutTombstone(n node.Node) {
	c.put(tombstoneKey(n.Certname, n.UID), encode(n))
	c.put(tombstoneTimeKey(n), nil)
}

// PutCertificate writes a certificate, guarded by its Revision (0: a new one).
func (c *Change) PutCertificate(cert node.Certificate) {
	c.guard(certKey(cert.Serial), cert.Revision)
	c.put(certKey(cert.Serial), encode(cert))
	c.put(certOfKey(cert), nil)
	if cert.Owner != "" {
		c.put(certOwnerKey(cert), nil)
	}
}

// GiveCertificate writes a certificate with another owner.
func (c *Change) GiveCertificate(cert node.Certificate, owner string) {
	c.remove(certOwnerKey(cert))
	cert.Owner = owner
	c.PutCertificate(cert)
}

// RemoveCertificate forgets a certificate.
func (c *Change) RemoveCertificate(cert node.Certificate) {
	c.guard(certKey(cert.Serial), cert.Revision)
	c.remove(certKey(cert.Serial))
	c.remove(certOfKey(cert))
	c.remove(certOwnerKey(cert))
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

// PutRequest remembers a new request id.
func (c *Change) PutRequest(r node.Request) {
	c.guard(requestKey(r.Key()), 0)
	c.put(requestKey(r.Key()), encode(r))
}

// RemoveRequest forgets a request id, by its Request.Key.
func (c *Change) RemoveRequest(key string) { c.remove(requestKey(key)) }

// PutRevocation writes a revocation, guarded by its Revision (0: a new one).
func (c *Change) PutRevocation(r node.Revocation) {
	c.guard(revocationKey(r.ID), r.Revision)
	c.put(revocationKey(r.ID), encode(r))
	if r.Open() {
		c.put(pendingKey(r.ID), nil)
		c.put(revocationOfPrefix(r.Certname, r.UID)+r.ID, nil)
	} else {
		c.remove(pendingKey(r.ID))
	}
	if r.Owner != "" {
		c.put(revocationOwnerKey(r), nil)
	}
}

// GiveRevocation writes a revocation with another owner.
func (c *Change) GiveRevocation(r node.Revocation, owner string) {
	c.remove(revocationOwnerKey(r))
	r.Owner = owner
	c.PutRevocation(r)
}

// Forget removes a tombstone and all that belongs to that registration. It fails if one of the
// certificates is ordered to be revoked, or comes to anything else, after it was read.
func (c *Change) Forget(n node.Node, certs []node.Certificate, revs []node.Revocation) {
	c.remove(tombstoneKey(n.Certname, n.UID))
	c.remove(tombstoneTimeKey(n))
	for _, key := range n.Requests {
		c.RemoveRequest(key)
	}
	for _, cert := range certs {
		c.RemoveCertificate(cert)
	}
	for _, r := range revs {
		c.remove(revocationKey(r.ID))
		c.remove(revocationOfPrefix(r.Certname, r.UID) + r.ID)
		c.remove(revocationOwnerKey(r))
	}
}
