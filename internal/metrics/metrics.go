// Package metrics serves metrics for Prometheus, and the health probes, on an HTTP port of its own. The other
// packages do not import it: they call the functions that package daemon gives them.
//
// No label has a value that a caller chooses, such as a certname. So the number of series is bounded.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"

	"github.com/espm-project/espm/internal/version"
)

// Metrics are the numbers that are counted when an event occurs. Its methods may be called concurrently.
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

// Labels are the label values that are known before anything is counted. Each makes a series that is
// there, at zero, from the first scrape: a rate over a series that appears with its first count misses that count.
type Labels struct {
	Methods  []string // full gRPC names, "/SERVICE/METHOD"; each has a request counter for the code OK
	Outcomes []string // of an answer on the ENC socket
	Stages   []string // of an issue
}

// New returns Metrics that have counted nothing.
func New(known Labels) *Metrics {
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
		requestTime: seconds("espm_request_duration_seconds", "Time from an API call to its answer; for a watch, to its end.", slow, "method"),
		encTime: seconds("espm_enc_answer_duration_seconds", "Answers on the ENC socket: known, empty, command, unregistered, invalid or error.",
			[]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .05, .1, .5, 1, 2}, "outcome"),
		stageTime: seconds("espm_provision_stage_duration_seconds",
			"Stages of an issue that succeeded: registered (key made, intent committed), signed (by the authority), committed.", slow, "stage"),
		commitTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "espm_store_commit_duration_seconds", Help: "One transaction of the store, with its wait for the disk; many changes may share one.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}),
		commitErrors: counter("espm_store_commit_errors_total", "Transactions of the store that failed, as on a full disk."),
		committed:    counter("espm_store_changes_total", "Changes that were committed to the store."),
		reloadOK:     gauge("espm_config_reload_ok", "1: the configuration was valid when it was last read; 0: it was refused, and the previous one applies."),
		reloadedAt:   gauge("espm_config_reload_timestamp_seconds", "When the configuration was last read."),
	}
	m.registry.MustRegister(m.requests, m.requestTime, m.encTime, m.stageTime, m.commitTime, m.commitErrors, m.committed,
		m.reloadOK, m.reloadedAt, buildInfo(), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.makeSeries(known)
	return m
}

func (m *Metrics) makeSeries(known Labels) {
	for _, method := range known.Methods {
		m.requests.WithLabelValues(method, codes.OK.String())
		m.requestTime.WithLabelValues(method)
	}
	for _, outcome := range known.Outcomes {
		m.encTime.WithLabelValues(outcome)
	}
	for _, stage := range known.Stages {
		m.stageTime.WithLabelValues(stage)
	}
}

func buildInfo() prometheus.Collector {
	is := version.Read()
	labels := prometheus.Labels{"version": is.Version, "commit": is.Commit, "go": is.Go}
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "espm_build_info", Help: "1; the labels name the running program.", ConstLabels: labels})
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

// Reloaded records that the configuration was read, and whether it was valid.
func (m *Metrics) Reloaded(ok bool) {
	m.reloadOK.Set(0)
	if ok {
		m.reloadOK.Set(1)
	}
	m.reloadedAt.SetToCurrentTime()
}
