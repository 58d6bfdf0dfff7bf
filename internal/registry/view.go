package registry

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// What callers read. Nothing outside this package reads the store for a
// caller, as it would pass by ownership.

// live returns the live registration of a name, whoever owns it; false if there is none.
func (r *Registry) live(ctx context.Context, name node.Certname) (node.Node, bool, error) {
	n, err := r.Store.Node(ctx, name)
	if errors.Is(err, node.ErrNodeNotFound) {
		return n, false, nil
	}
	return n, err == nil, err
}

// node returns the live registration of a name, if the caller sees it; else node.ErrNodeNotFound.
func (r *Registry) node(ctx context.Context, name node.Certname) (node.Node, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Node{}, err
	}
	n, err := r.Store.Node(ctx, name)
	if err == nil && !accessOf(ctx).sees(n.Owner) {
		return node.Node{}, store.NoNode(name)
	}
	return n, err
}

// pastLife returns a terminated registration likewise.
func (r *Registry) pastLife(ctx context.Context, name node.Certname, uid node.UID) (node.Node, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Node{}, err
	}
	n, err := r.Store.Tombstone(ctx, name, uid)
	if err == nil && !accessOf(ctx).sees(n.Owner) {
		return node.Node{}, store.NoTombstone(name, uid)
	}
	return n, err
}

// Certificate returns a certificate and its revocation, nil if none was
// ordered. Error: node.ErrCertificateNotFound.
func (r *Registry) Certificate(ctx context.Context, serial node.Serial) (node.Certificate, *node.Revocation, error) {
	cert, err := r.certificate(ctx, serial)
	if err != nil || cert.Revocation == "" {
		return cert, nil, err
	}
	rev, err := r.Store.Revocation(ctx, cert.Revocation)
	return cert, &rev, err
}

// certificate returns a certificate, if the caller sees it; else node.ErrCertificateNotFound.
func (r *Registry) certificate(ctx context.Context, serial node.Serial) (node.Certificate, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Certificate{}, err
	}
	cert, err := r.Store.Certificate(ctx, serial)
	if err == nil && !accessOf(ctx).sees(cert.Owner) {
		return node.Certificate{}, store.NoCertificate(serial)
	}
	return cert, err
}

// Certificates returns a page of certificates, of one name if that is given, as
// store.View.Certificates, CertificatesOf and CertificatesOwned do, and where on its list one of them stands.
func (r *Registry) Certificates(ctx context.Context, name node.Certname, after string, limit int) (store.Page[node.Certificate], func(node.Certificate) string, error) {
	inName := func(c node.Certificate) string { return string(c.UID) + "/" + string(c.Serial) }
	owner, err := accessOf(ctx).scope()
	switch {
	case err != nil:
		return store.Page[node.Certificate]{}, nil, err
	case owner != "":
		page, err := r.Store.CertificatesOwned(ctx, owner, name, after, limit)
		if name == "" {
			return page, func(c node.Certificate) string { return string(c.Certname) + "/" + inName(c) }, err
		}
		return page, inName, err
	case name != "":
		page, err := r.Store.CertificatesOf(ctx, name, after, limit)
		return page, inName, err
	default:
		page, err := r.Store.Certificates(ctx, after, limit)
		return page, func(c node.Certificate) string { return string(c.Serial) }, err
	}
}

// Revocation returns a revocation. Error: node.ErrRevocationNotFound.
func (r *Registry) Revocation(ctx context.Context, id string) (node.Revocation, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Revocation{}, err
	}
	rev, err := r.Store.Revocation(ctx, id)
	if err == nil && !accessOf(ctx).sees(rev.Owner) {
		return node.Revocation{}, store.NoRevocation(id)
	}
	return rev, err
}

// ListRevocations returns a page of revocations, as store.View.Revocations
// does, and where on its list one of them stands.
func (r *Registry) ListRevocations(ctx context.Context, f store.RevocationFilter, after string, limit int) (store.Page[node.Revocation], func(node.Revocation) string, error) {
	owner, err := accessOf(ctx).scope()
	if err != nil {
		return store.Page[node.Revocation]{}, nil, err
	}
	f.Owner = owner
	page, err := r.Store.Revocations(ctx, f, after, limit)
	return page, func(rev node.Revocation) string {
		if f.Certname == "" || f.Owner != "" {
			return rev.ID
		}
		return string(rev.UID) + "/" + rev.ID
	}, err
}

// Down returns why no revocation at all can be carried out; nil if that is not
// known. Whose certificate it was noticed on is not everybody's business.
func (r *Registry) Down(ctx context.Context) *node.Failure {
	if accessOf(ctx).known() != nil {
		return nil
	}
	down := r.Revocations.Down()
	if down == nil || !accessOf(ctx).confined() {
		return down
	}
	told := *down
	told.Error = "no certificate can be revoked at present; an admin can see why"
	return &told
}

// CountPending is store.View.CountPending, for those who see all.
func (r *Registry) CountPending(ctx context.Context) (int, *node.Revocation, error) {
	if err := accessOf(ctx).known(); err != nil {
		return 0, nil, err
	}
	if accessOf(ctx).confined() {
		return 0, nil, node.NotPermitted("", "only admins and readers see the state of the CA")
	}
	return r.Store.CountPending(ctx)
}

// Group returns a group. Error: node.ErrGroupNotFound.
func (r *Registry) Group(ctx context.Context, name string) (node.Group, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Group{}, err
	}
	if !accessOf(ctx).reads(name) {
		return node.Group{}, store.NoGroup(name)
	}
	return r.Store.Group(ctx, name)
}

// grantedPage bounds how many groups are read at once for a caller that is confined to some.
const grantedPage = 50

// Groups returns a page of groups, as store.View.Groups does.
func (r *Registry) Groups(ctx context.Context, after string, limit int) (store.Page[node.Group], error) {
	if err := accessOf(ctx).known(); err != nil {
		return store.Page[node.Group]{}, err
	}
	a := accessOf(ctx)
	if !a.confined() || a.Grant.Groups == nil {
		return r.Store.Groups(ctx, after, limit)
	}
	var page store.Page[node.Group]
	var err error
	if page.Revision, err = r.Store.Revision(ctx); err != nil {
		return page, err
	}
	granted := slices.Compact(slices.Sorted(slices.Values(a.Grant.Groups)))
	granted = slices.DeleteFunc(granted, func(name string) bool { return name <= after })
	if n := min(limit, grantedPage); len(granted) > n {
		granted = granted[:n]
		page.Next = granted[n-1]
	}
	for _, name := range granted {
		g, err := r.Store.Group(ctx, name)
		if errors.Is(err, node.ErrGroupNotFound) {
			continue
		}
		if err != nil {
			return page, err
		}
		page.Items = append(page.Items, g)
	}
	return page, nil
}

// Classify returns a node's merged classification. Error: node.ErrNodeNotFound.
func (r *Registry) Classify(ctx context.Context, name node.Certname) (node.Classification, error) {
	return enc.Classify(ctx, seen{r}, name)
}

// seen has the nodes that a caller sees, and all groups: what a node inherits is its own.
type seen struct{ registry *Registry }

func (s seen) Node(ctx context.Context, name node.Certname) (node.Node, error) {
	return s.registry.node(ctx, name)
}

func (s seen) Group(ctx context.Context, name string) (node.Group, error) {
	return s.registry.Store.Group(ctx, name)
}

// Revision returns the store's revision, to watch from.
func (r *Registry) Revision(ctx context.Context) (int64, error) {
	if err := accessOf(ctx).known(); err != nil {
		return 0, err
	}
	return r.Store.Revision(ctx)
}

// WatchNodes yields changes of live registrations, as store.Store.WatchNodes
// does. To a caller that sees its own alone, one that was given to another is gone.
func (r *Registry) WatchNodes(ctx context.Context, after int64) iter.Seq2[store.NodeEvent, error] {
	owner, err := accessOf(ctx).scope()
	switch {
	case err != nil:
		return func(yield func(store.NodeEvent, error) bool) { yield(store.NodeEvent{}, err) }
	case owner != "":
		return r.Store.WatchNodesOf(ctx, owner, after)
	default:
		return r.Store.WatchNodes(ctx, after)
	}
}

// WatchRevocations yields changes of revocations, as store.Store.WatchRevocations does.
func (r *Registry) WatchRevocations(ctx context.Context, after int64) iter.Seq2[store.RevocationEvent, error] {
	a := accessOf(ctx)
	return func(yield func(store.RevocationEvent, error) bool) {
		if err := a.known(); err != nil {
			yield(store.RevocationEvent{}, err)
			return
		}
		for ev, err := range r.Store.WatchRevocations(ctx, after) {
			if err == nil && !a.sees(ev.Revocation.Owner) {
				continue
			}
			if !yield(ev, err) || err != nil {
				return
			}
		}
	}
}
