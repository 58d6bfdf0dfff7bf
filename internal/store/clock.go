package store

import (
	"context"
	"time"
)

// Clock is the store's evidence of how late it is; see package clock.
type Clock struct {
	Newest time.Time `json:"newest"` // the latest time at which the clock was believed
	// Overruled is the latest time that an admin called wrong. No time from Newest up to it is evidence.
	Overruled time.Time `json:"overruled,omitzero"`
}

// Clock returns the evidence, or false if the store has none.
func (v View) Clock(ctx context.Context) (Clock, bool, error) {
	return optional[Clock](ctx, v.records, clockKey)
}

// PutClock writes the evidence. Only one process has the store open, so it needs no guard.
func (c *Change) PutClock(evidence Clock) { c.put(clockKey, encode(evidence)) }
