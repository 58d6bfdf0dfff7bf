package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/store"
)

// view has every read for callers. No other package reads the store for a caller: that would bypass ownership.
type view struct {
	core
	sightings *Sightings
	down      func() *node.Failure // why no revocation can be carried out; nil if revocations can be
	authority interface {
		Status(ctx context.Context) (ca.Status, error)
		Trust(ctx context.Context) (ca.Trust, error)
	}
}

// node returns the live registration of a name. It returns node.ErrNodeNotFound if there is none, or if the
// caller may not see it.
func (v *view) node(ctx context.Context, name node.Certname) (node.Node, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Node{}, err
	}
	n, err := v.store.Node(ctx, name)
	if err == nil && !accessOf(ctx).sees(n.Owner) {
		return node.Node{}, store.NoNode(name)
	}
	return n, err
}

// pastLife returns a terminated registration, with the errors of node.
func (v *view) pastLife(ctx context.Context, name node.Certname, uid node.UID) (node.Node, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Node{}, err
	}
	n, err := v.store.Tombstone(ctx, name, uid)
	if err == nil && !accessOf(ctx).sees(n.Owner) {
		return node.Node{}, store.NoTombstone(name, uid)
	}
	return n, err
}

// Certificate returns a certificate and its revocation, nil if none was
// ordered. Error: node.ErrCertificateNotFound.
func (v *view) Certificate(ctx context.Context, serial node.Serial) (node.Certificate, *node.Revocation, error) {
	cert, err := v.certificate(ctx, serial)
	if err != nil || cert.Revocation == "" {
		return cert, nil, err
	}
	rev, err := v.store.Revocation(ctx, cert.Revocation)
	return cert, &rev, err
}

// certificate returns a certificate. It returns node.ErrCertificateNotFound if there is none, or if the caller may
// not see it.
func (v *view) certificate(ctx context.Context, serial node.Serial) (node.Certificate, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Certificate{}, err
	}
	cert, err := v.store.Certificate(ctx, serial)
	if err == nil && !accessOf(ctx).sees(cert.Owner) {
		return node.Certificate{}, store.NoCertificate(serial)
	}
	return cert, err
}

// Certificates returns a page of certificates, only those of name if it is not empty. It also returns the function
// that gives a certificate's position, which the next call takes as after.
func (v *view) Certificates(ctx context.Context, name node.Certname, after string, limit int) (store.Page[node.Certificate], func(node.Certificate) string, error) {
	inName := func(c node.Certificate) string { return string(c.UID) + "/" + string(c.Serial) }
	owner, err := accessOf(ctx).scope()
	switch {
	case err != nil:
		return store.Page[node.Certificate]{}, nil, err
	case owner != "":
		page, err := v.store.CertificatesOwned(ctx, owner, name, after, limit)
		if name == "" {
			return page, func(c node.Certificate) string { return string(c.Certname) + "/" + inName(c) }, err
		}
		return page, inName, err
	case name != "":
		page, err := v.store.CertificatesOf(ctx, name, after, limit)
		return page, inName, err
	default:
		page, err := v.store.Certificates(ctx, after, limit)
		return page, func(c node.Certificate) string { return string(c.Serial) }, err
	}
}

// WithImpossibleDates returns the certificates whose dates can't be right: they begin in the future, begin more than
// ca.Backdate before the CA's certificate, or end after it. The error wraps node.ErrUnavailable.
func (v *view) WithImpossibleDates(ctx context.Context, certs []node.Certificate) ([]node.Certificate, error) {
	trust, err := v.Trust(ctx)
	if err != nil {
		return nil, err
	}
	chain, err := pemfile.RawCertificates(trust.CertificatesPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: the CA's certificate: %w", node.ErrUnavailable, err)
	}
	issuer, now := chain[0].X509, v.now()
	if issuer == nil {
		return nil, fmt.Errorf("%w: the CA's certificate: %w", node.ErrUnavailable, chain[0].Unreadable)
	}
	return slices.DeleteFunc(slices.Clone(certs), func(c node.Certificate) bool {
		return !c.NotBefore.After(now) && !c.NotBefore.Before(issuer.NotBefore.Add(-ca.Backdate)) && !c.NotAfter.After(issuer.NotAfter)
	}), nil
}

// Revocation returns a revocation. Error: node.ErrRevocationNotFound.
func (v *view) Revocation(ctx context.Context, id string) (node.Revocation, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Revocation{}, err
	}
	rev, err := v.store.Revocation(ctx, id)
	if err == nil && !accessOf(ctx).sees(rev.Owner) {
		return node.Revocation{}, store.NoRevocation(id)
	}
	return rev, err
}

// ListRevocations returns a page of revocations, and the function that gives a revocation's position, which the
// next call takes as after.
func (v *view) ListRevocations(ctx context.Context, f store.RevocationFilter, after string, limit int) (store.Page[node.Revocation], func(node.Revocation) string, error) {
	owner, err := accessOf(ctx).scope()
	if err != nil {
		return store.Page[node.Revocation]{}, nil, err
	}
	f.Owner = owner
	page, err := v.store.Revocations(ctx, f, after, limit)
	return page, func(rev node.Revocation) string {
		if f.Certname == "" || f.Owner != "" {
			return rev.ID
		}
		return string(rev.UID) + "/" + rev.ID
	}, err
}

// Down returns why no revocation can be carried out; nil if revocations can be. A confined caller gets no detail:
// the error may name a certificate of another owner.
func (v *view) Down(ctx context.Context) *node.Failure {
	if accessOf(ctx).known() != nil {
		return nil
	}
	down := v.down()
	if down == nil || !accessOf(ctx).confined() {
		return down
	}
	public := *down
	public.Error = "no certificate can be revoked at present; an admin can see why"
	return &public
}

// AuthorityStatus asks the authority for its state. Error: node.ErrNotPermitted for a confined caller.
func (v *view) AuthorityStatus(ctx context.Context) (ca.Status, error) {
	if err := accessOf(ctx).all(); err != nil {
		return ca.Status{}, err
	}
	return v.authority.Status(ctx)
}

// Trust returns the CA's certificates and CRLs, for every caller.
func (v *view) Trust(ctx context.Context) (ca.Trust, error) {
	if err := accessOf(ctx).known(); err != nil {
		return ca.Trust{}, err
	}
	return v.authority.Trust(ctx)
}

// CountPending is store.View.CountPending. Error: node.ErrNotPermitted for a confined caller.
func (v *view) CountPending(ctx context.Context) (int, *node.Revocation, error) {
	if err := accessOf(ctx).all(); err != nil {
		return 0, nil, err
	}
	return v.store.CountPending(ctx)
}

// Group returns a group. Error: node.ErrGroupNotFound.
func (v *view) Group(ctx context.Context, name string) (node.Group, error) {
	if err := accessOf(ctx).known(); err != nil {
		return node.Group{}, err
	}
	if !accessOf(ctx).reads(name) {
		return node.Group{}, store.NoGroup(name)
	}
	return v.store.Group(ctx, name)
}

// Token returns a token, without its secret. Errors: node.ErrNotPermitted, ErrTokenNotFound.
func (v *view) Token(ctx context.Context, name string) (node.Token, error) {
	if err := accessOf(ctx).admin("", "read tokens"); err != nil {
		return node.Token{}, err
	}
	return v.store.Token(ctx, name)
}

// Tokens returns a page of tokens, as store.View.Tokens does. Error: node.ErrNotPermitted.
func (v *view) Tokens(ctx context.Context, after string, limit int) (store.Page[node.Token], error) {
	if err := accessOf(ctx).admin("", "read tokens"); err != nil {
		return store.Page[node.Token]{}, err
	}
	return v.store.Tokens(ctx, after, limit)
}

// grantedPage bounds the groups of a page for a caller with a grant of groups.
const grantedPage = 50

// Groups returns a page of groups, as store.View.Groups does.
func (v *view) Groups(ctx context.Context, after string, limit int) (store.Page[node.Group], error) {
	if err := accessOf(ctx).known(); err != nil {
		return store.Page[node.Group]{}, err
	}
	a := accessOf(ctx)
	if !a.confined() || a.Grant.Groups == nil {
		return v.store.Groups(ctx, after, limit)
	}
	var page store.Page[node.Group]
	var err error
	if page.Revision, err = v.store.Revision(ctx); err != nil {
		return page, err
	}
	granted := slices.Compact(slices.Sorted(slices.Values(a.Grant.Groups)))
	granted = slices.DeleteFunc(granted, func(name string) bool { return name <= after })
	if n := min(limit, grantedPage); len(granted) > n {
		granted = granted[:n]
		page.Next = granted[n-1]
	}
	for _, name := range granted {
		g, err := v.store.Group(ctx, name)
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
func (v *view) Classify(ctx context.Context, name node.Certname) (node.Classification, error) {
	return enc.Classify(ctx, callerSource{v}, name)
}

// callerSource has the nodes that the caller may see, and all groups: who sees a node sees what it inherits.
type callerSource struct{ view *view }

func (s callerSource) Node(ctx context.Context, name node.Certname) (node.Node, error) {
	return s.view.node(ctx, name)
}

func (s callerSource) Group(ctx context.Context, name string) (node.Group, error) {
	return s.view.store.Group(ctx, name)
}

// Revision returns the store's revision, to watch from.
func (v *view) Revision(ctx context.Context) (int64, error) {
	if err := accessOf(ctx).known(); err != nil {
		return 0, err
	}
	return v.store.Revision(ctx)
}

// WatchNodes yields changes of live registrations, as store.Store.WatchNodes does. If a node gets another owner, a
// confined caller gets the event of a removed node.
func (v *view) WatchNodes(ctx context.Context, after int64) iter.Seq2[store.NodeEvent, error] {
	owner, err := accessOf(ctx).scope()
	switch {
	case err != nil:
		return func(yield func(store.NodeEvent, error) bool) { yield(store.NodeEvent{}, err) }
	case owner != "":
		return v.store.WatchNodesOf(ctx, owner, after)
	default:
		return v.store.WatchNodes(ctx, after)
	}
}

// WatchRevocations yields changes of revocations, as store.Store.WatchRevocations does.
func (v *view) WatchRevocations(ctx context.Context, after int64) iter.Seq2[store.RevocationEvent, error] {
	a := accessOf(ctx)
	return func(yield func(store.RevocationEvent, error) bool) {
		if err := a.known(); err != nil {
			yield(store.RevocationEvent{}, err)
			return
		}
		for ev, err := range v.store.WatchRevocations(ctx, after) {
			if err == nil && !a.sees(ev.Revocation.Owner) {
				continue
			}
			if !yield(ev, err) || err != nil {
				return
			}
		}
	}
}

// Get returns the registration with the uid, live or terminated. If uid is empty, it returns the live registration
// of the certname. Error: node.ErrNodeNotFound.
func (v *view) Get(ctx context.Context, name node.Certname, uid node.UID) (node.Node, error) {
	n, err := v.node(ctx, name)
	if err == nil && (uid == "" || n.UID == uid) {
		n.LastSeenAt, err = v.sightings.last(ctx, n)
	}
	if uid == "" || err == nil && n.UID == uid {
		return n, err
	}
	if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
		return n, err
	}
	return v.pastLife(ctx, name, uid)
}

// NodeQuery selects nodes.
type NodeQuery struct {
	store.NodeFilter
	// NotSeenFor selects nodes that were neither registered nor seen in this time; 0 selects all.
	NotSeenFor time.Duration
}

// List returns a page of live nodes, as store.View.Nodes does. It reads up to limit nodes that match the labels and
// the group, and returns those of them that match NotSeenFor. So a page may be short, or empty.
func (v *view) List(ctx context.Context, q NodeQuery, after string, limit int) (store.Page[node.Node], error) {
	owner, err := accessOf(ctx).scope()
	if err != nil {
		return store.Page[node.Node]{}, err
	}
	if owner != "" && q.Owner != "" && q.Owner != owner {
		rev, err := v.store.Revision(ctx)
		return store.Page[node.Node]{Revision: rev}, err
	}
	q.Owner = cmp.Or(owner, q.Owner)
	page, err := v.store.Nodes(ctx, q.NodeFilter, after, limit)
	if err != nil {
		return page, err
	}
	since := v.now().Add(-q.NotSeenFor)
	found := page.Items[:0]
	for _, n := range page.Items {
		if n.LastSeenAt, err = v.sightings.last(ctx, n); err != nil {
			return page, err
		}
		if q.NotSeenFor == 0 || !n.CreatedAt.After(since) && !n.LastSeenAt.After(since) {
			found = append(found, n)
		}
	}
	page.Items = found
	return page, nil
}
