package registry

import "context"

// Sweep is sweep, for tests of what is forgotten, and when.
func (r *Registry) Sweep(ctx context.Context) error { return r.sweep(ctx) }
