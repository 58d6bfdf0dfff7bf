package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/espm-project/espm/internal/node"
)

// Health is the answer of /healthz and /readyz.
type Health struct {
	Live  bool `json:"live"`  // the store answers
	Ready bool `json:"ready"` // nodes can be provisioned, and revocations are carried out

	Store     string `json:"store"`     // "ok", or the store's error
	Authority string `json:"authority"` // "ok", or why the authority can't sign and revoke
	Clock     string `json:"clock"`     // "ok", or why nothing is signed with this clock

	Certificates string `json:"certificates"` // of espm itself: "ok", or which has ended

	PendingRevocations   int     `json:"pending_revocations"`
	OldestPendingSeconds float64 `json:"oldest_pending_seconds"`
}

const ok = "ok"

// errNotChecked stands for the authority's status before the first check.
var errNotChecked = errors.New("not asked yet")

// probeLimit bounds the time in which the store must answer a probe.
const probeLimit = 2 * time.Second

func (w *watch) health(ctx context.Context) Health {
	h := Health{Store: ok, Authority: ok, Certificates: ok, Clock: ok}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	_, err := w.Store.Revision(ctx)
	down := w.Down()
	if err := w.Sources.Clock(); err != nil {
		h.Clock = err.Error()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		err = w.unread
	}
	if err != nil {
		h.Store = err.Error()
	}
	switch now := w.Now(); {
	case w.failed != nil:
		h.Authority = w.failed.Error()
	case down != nil:
		h.Authority = "revocations wait: " + down.Error
	case w.status.CheckInForce(now) != nil:
		h.Authority = w.status.CheckInForce(now).Error()
	case !w.status.CRL.NextUpdate.IsZero() && now.After(w.status.CRL.NextUpdate):
		h.Authority = fmt.Sprintf("the CA's CRL ran out %s", w.status.CRL.NextUpdate.UTC().Format(time.RFC3339))
	}
	h.PendingRevocations, h.OldestPendingSeconds = w.pending, w.age().Seconds()
	for _, c := range w.Credentials() {
		if c.Kind != node.BearerToken && c.Ended(w.Now()) {
			h.Certificates = c.Trouble(w.Now())
		}
	}
	h.Live = h.Store == ok
	h.Ready = h.Live && h.Authority == ok && h.Certificates == ok && h.Clock == ok
	return h
}

func (m *Metrics) handler(w *watch) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Registry: m.registry}))
	probe := func(good func(Health) bool) http.HandlerFunc {
		return func(out http.ResponseWriter, r *http.Request) {
			h := w.health(r.Context())
			out.Header().Set("Content-Type", "application/json")
			if !good(h) {
				out.WriteHeader(http.StatusServiceUnavailable)
			}
			enc := json.NewEncoder(out)
			enc.SetIndent("", "  ")
			_ = enc.Encode(h) // fails only if the client has gone
		}
	}
	mux.Handle("GET /healthz", probe(func(h Health) bool { return h.Live }))
	mux.Handle("GET /readyz", probe(func(h Health) bool { return h.Ready }))
	return mux
}

// Serve answers on a listener until ctx is done. Then it closes the listener and returns nil. /metrics is for
// Prometheus; /healthz and /readyz answer with Health, and with code 503 if espm is not live or not ready.
// Serve must be called once only.
func (m *Metrics) Serve(ctx context.Context, l net.Listener, s Sources) error {
	w := &watch{Sources: s, failed: errNotChecked}
	m.registry.MustRegister(w)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		w.run(ctx)
	}()
	server := &http.Server{
		Handler:           m.handler(w),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	err := server.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-watching
		return nil
	}
	return fmt.Errorf("metrics.listen: %w", err)
}
