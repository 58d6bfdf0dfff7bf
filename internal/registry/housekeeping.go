package registry

import (
	"context"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// housekeeping removes expired records.
type housekeeping struct {
	core
	groups *groups
	swept  time.Time // of the last sweep
}

// retention is the time from a termination until its records may be removed. They stay longer if a certificate
// is not revoked yet.
const retention = 30 * 24 * time.Hour

// run removes expired records, once an hour.
func (h *housekeeping) run(ctx context.Context) {
	now := h.now()
	if now.Sub(h.swept) < time.Hour || h.clock() != nil {
		return
	}
	h.swept = now
	if err := h.sweep(ctx); err != nil && ctx.Err() == nil {
		h.log.WithError(err).Error("remove the records of registrations that were terminated long ago")
	}
	if err := h.groups.sweep(ctx); err != nil && ctx.Err() == nil {
		h.log.WithError(err).Error("remove the sets of groups that no node is in")
	}
}

// sweep removes the records of registrations that were terminated before the retention.
func (h *housekeeping) sweep(ctx context.Context) error {
	for n, err := range h.store.TombstonesBefore(ctx, h.now().Add(-retention)) {
		if err != nil {
			return err
		}
		if err := retry(func() error { return h.forget(ctx, n) }); err != nil && ctx.Err() == nil {
			h.log.WithError(err).WithField("certname", n.Certname).Error("remove the records of a registration that was terminated long ago")
		}
	}
	return nil
}

// forget removes the records of a terminated registration. It does nothing while an issue or a revocation is
// open, or while a certificate is valid: a certificate whose revocation was dropped may still be revoked by its
// serial.
func (h *housekeeping) forget(ctx context.Context, n node.Node) error {
	// The revocations are read last: an intent may become a revocation, never the reverse. If a revocation is
	// ordered after its certificate was read, the guard of the commit fails.
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
	// The tombstone is removed last: the next sweep finds the other records by it.
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
