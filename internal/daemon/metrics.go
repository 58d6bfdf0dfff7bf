package daemon

import (
	"context"
	"fmt"
	"net"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/enc/encsock"
	"github.com/espm-project/espm/internal/metrics"
	"github.com/espm-project/espm/internal/registry"
)

func seriesLabels() metrics.Labels {
	methods := auth.Methods()
	for i, m := range methods {
		methods[i] = "/" + m // as gRPC names it
	}
	return metrics.Labels{Methods: methods, Outcomes: encsock.Outcomes(), Stages: registry.Stages()}
}

// serveMetrics serves metrics and health until ctx is done, if the configuration names a port.
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
