// Package metrics shows how espm does: numbers for Prometheus, and health, on
// an HTTP port of its own. The parts of espm don't know of it: they call the
// functions that package daemon hands them.
//
// No label holds what callers choose, such as a certname, so the number of
// series is bounded.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/espm-project/espm/internal/version"
)

// Metrics are the numbers that are counted as things happen. Its methods may be called at once.
type Metrics struct {
	registry *prometheus.Registry

	requests     *prometheus.CounterVec
	requestTime  *prometheus.HistogramVec
	encTime      *prometheus.HistogramVec
	stageTime    *prometheus.HistogramVec
	commitTime   prometheus.Histogram
	commitErrors prometheus.Counter
	committed    prometheus.Counter
	reloadOK     prometheus.Gauge
	reloadedAt   prometheus.Gauge
}

// New returns Metrics that have counted nothing.
func New() *Metrics {
	seconds := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	slow := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "espm_requests_total", Help: "API calls answered, by method and gRPC code.",
		}, []string{"method", "code"}),
		requestTime: seconds("espm_request_duration_seconds", "From an API call to its answer; of a watch, until it ended.", slow, "method"),
		encTime: seconds("espm_enc_answer_duration_seconds", "Answers on the ENC socket: known, empty, command, unregistered, invalid or error.",
			[]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .05, .1, .5, 1, 2}, "outcome"),
		stageTime: seconds("espm_provision_stage_duration_seconds",
			"Stages of an issue that succeeded: registered (key made, intent committed), signed (by the authority), committed.", slow, "stage"),
		commitTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "espm_store_commit_duration_seconds", Help: "One transaction of the store with its wait for the disk; many changes may share one.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}),
		commitErrors: counter("espm_store_commit_errors_total", "Transactions of the store that failed, as on a full disk."),
		committed:    counter("espm_store_changes_total", "Changes that were committed to the store."),
		reloadOK:     gauge("espm_config_reload_ok", "1: the configuration was in order when it was last read; 0: it was refused, and the one before holds."),
		reloadedAt:   gauge("espm_config_reload_timestamp_seconds", "When the configuration was last read."),
	}
	m.registry.MustRegister(m.requests, m.requestTime, m.encTime, m.stageTime, m.commitTime, m.commitErrors, m.committed,
		m.reloadOK, m.reloadedAt, buildInfo(), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func buildInfo() prometheus.Collector {
	v := version.Read()
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "espm_build_info", Help: "1, with what runs in the labels.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "go": v.Go}})
	g.Set(1)
	return g
}

// Answered counts an answer on the ENC socket.
func (m *Metrics) Answered(outcome string, took time.Duration) {
	m.encTime.WithLabelValues(outcome).Observe(took.Seconds())
}

// Stage counts a stage of an issue.
func (m *Metrics) Stage(stage string, took time.Duration) {
	m.stageTime.WithLabelValues(stage).Observe(took.Seconds())
}

// Committed counts a transaction of the store.
func (m *Metrics) Committed(changes int, took time.Duration, err error) {
	if err != nil {
		m.commitErrors.Inc()
		return
	}
	m.committed.Add(float64(changes))
	m.commitTime.Observe(took.Seconds())
}

// Reloaded notes that the configuration was read, and whether it was in order.
func (m *Metrics) Reloaded(ok bool) {
	m.reloadOK.Set(0)
	if ok {
		m.reloadOK.Set(1)
	}
	m.reloadedAt.SetToCurrentTime()
}
