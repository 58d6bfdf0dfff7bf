package daemon

import (
	"context"
	"fmt"
	"net"
)

// serveMetrics serves metrics and health until ctx is done, if the configuration has a port for them.
func (d *daemon) serveMetrics(ctx context.Context, cancel context.CancelCauseFunc) error {
	if d.config.Metrics.Listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", d.config.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("metrics.listen: %w", err)
	}
	d.metrics.Reloaded(true)
	d.log.WithField("listen", l.Addr().String()).Info("metrics are served")
	d.wg.Go(func() {
		if err := d.metrics.Serve(ctx, l, d.sources); err != nil {
			cancel(err)
		}
	})
	return nil
}
