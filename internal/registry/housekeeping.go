package registry

import (
	"context"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// housekeeping forgets what is past its time.
type housekeeping struct {
	core
	groups *groups
	swept  time.Time // the last time
}

// retention is how long a terminated registration is remembered after all
// its certificates are revoked.
const retention = 30 * 24 * time.Hour

// run forgets what it can, once an hour.
func (h *housekeeping) run(ctx context.Context) {
	now := h.now()
	if now.Sub(h.swept) < time.Hour || h.clock() != nil {
		return
	}
	h.swept = now
	if err := h.sweep(ctx); err != nil && ctx.Err() == nil {
		h.log.WithError(err).Error("forgetting old registrations")
	}
	if err := h.groups.sweep(ctx); err != nil && ctx.Err() == nil {
		h.log.WithError(err).Error("forgetting sets of groups that have no nodes")
	}
}

// sweep forgets registrations that were terminated long ago and owe nothing.
func (h *housekeeping) sweep(ctx context.Context) error {
	for n, err := range h.store.TombstonesBefore(ctx, h.now().Add(-retention)) {
		if err != nil {
			return err
		}
		if err := retry(func() error { return h.forget(ctx, n) }); err != nil && ctx.Err() == nil {
			h.log.WithError(err).WithField("certname", n.Certname).Error("forgetting an old registration")
		}
	}
	return nil
}

// forget removes what is left of a registration, once it owes nothing: a
// certificate whose revocation was dropped can be revoked by its serial until it expires.
func (h *housekeeping) forget(ctx context.Context, n node.Node) error {
	// The revocations last: an intent turns into one, never the reverse, and of one that is
	// ordered after its certificate was read, the commit's guard tells.
	if _, open, err := h.store.Intent(ctx, n.UID); err != nil || open {
		return err
	}
	certs, err := h.store.CertificatesOfLife(ctx, n.Certname, n.UID)
	alive := func(cert node.Certificate) bool { return cert.Receipt == nil && !h.now().After(cert.NotAfter) }
	if err != nil || slices.ContainsFunc(certs, alive) {
		return err
	}
	revs, err := h.store.RevocationsOf(ctx, n.Certname, n.UID)
	if err != nil || slices.ContainsFunc(revs, node.Revocation.Open) {
		return err
	}
	var parts []func(*store.Change)
	for _, key := range n.Requests {
		parts = append(parts, func(c *store.Change) { c.RemoveRequest(key) })
	}
	for _, cert := range certs {
		parts = append(parts, func(c *store.Change) { c.RemoveCertificate(cert) })
	}
	for _, rev := range revs {
		parts = append(parts, func(c *store.Change) { c.RemoveRevocation(rev) })
	}
	// The tombstone goes last: as long as it is there, the next sweep goes on with the rest.
	parts = append(parts, func(c *store.Change) { c.RemoveTombstone(n) })
	for some := range slices.Chunk(parts, h.store.Fit(len(parts), 1)) {
		c := store.NewChange()
		c.Audit(h.line(ctx, node.ActionForget, n))
		for _, part := range some {
			part(c)
		}
		if _, err := h.store.Commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}
