package metrics

import (
	"context"
	"math/big"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Store is what is asked of the store.
type Store interface {
	Revision(ctx context.Context) (int64, error)
	CountPending(ctx context.Context) (n int, oldest *node.Revocation, err error)
	CountImpossible(ctx context.Context) (n int, err error)
}

// Sources are what the numbers are read from.
type Sources struct {
	Store      Store
	StoreBytes func() (int64, error)
	Brief      func(ctx context.Context) (ca.Status, error) // of the authority; see ca.Brief
	Down       func() *node.Failure                         // why no revocation can be carried out; nil: none
	Keys       func() map[ca.KeyAlgorithm]ca.PoolStats
	Now        func() time.Time
}

// every is how old what is known of the authority and of the queue may be. A scrape
// or a probe asks neither: the authority may be far, and the queue long.
const every = 15 * time.Second

// lookLimit bounds one look.
const lookLimit = 30 * time.Second

// watch keeps what was last seen.
type watch struct {
	Sources

	mu         sync.Mutex
	status     ca.Status // the last that could be had
	failed     error     // why there is no newer one
	pending    int
	impossible int
	oldest     time.Time // zero: none is pending
	unread     error     // why the queue can't be read
}

// run looks until ctx is done.
func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		w.look(ctx)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (w *watch) look(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	n, oldest, unread := w.Store.CountPending(limited)
	var impossible int
	if unread == nil {
		impossible, unread = w.Store.CountImpossible(limited)
	}
	status, failed := w.Brief(limited)
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unread = unread; unread == nil {
		w.pending, w.impossible, w.oldest = n, impossible, time.Time{}
		if oldest != nil {
			w.oldest = oldest.CreatedAt
		}
	}
	if w.failed = failed; failed == nil {
		w.status = status
	}
}

var (
	storeBytes = desc("espm_store_bytes", "Size of the store's file.")
	pending    = desc("espm_revocations_pending", "Revocations that are ordered and not carried out.")
	unrevoked  = desc("espm_revocations_impossible", "Revocations that the authority can't carry out: their certificates stay valid until they expire.")
	oldestAge  = desc("espm_revocations_oldest_pending_seconds", "Age of the oldest of them; 0 where there is none.")
	revokerUp  = desc("espm_revocations_possible", "1: the authority took the last revocations, or none were tried; 0: it can't act.")
	authority  = desc("espm_authority_up", "1: the authority answers; 0: it does not, and what is said of CA and CRL is as it was.")
	caEnd      = desc("espm_ca_not_after_timestamp_seconds", "End of the CA's certificate.")
	crlNumber  = desc("espm_crl_number", "Number of the CA's own CRL.")
	crlEntries = desc("espm_crl_entries", "Entries of the CA's own CRL.")
	crlBytes   = desc("espm_crl_bytes", "All CRLs in PEM: what each agent downloads once a day.")
	crlEnd     = desc("espm_crl_next_update_timestamp_seconds", "When a CRL runs out, by issuer: the CA's own and those of the CAs above it.", "issuer")
	crlFile    = desc("espm_crl_file_ok", "1: the file has the CRL as it should be; 0: it can't be written.", "path")
	keysReady  = desc("espm_key_pool_ready", "Keys that wait to be taken.", "algorithm")
	keysRoom   = desc("espm_key_pool_capacity", "How many keys the pool holds at most; an algorithm that costs nothing has no pool.", "algorithm")
	keysTaken  = desc("espm_keys_taken_total", "Keys handed out.", "algorithm")
	keysWaited = desc("espm_keys_waited_total", "Of these, keys that a caller had to wait for.", "algorithm")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (w *watch) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		storeBytes, pending, unrevoked, oldestAge, revokerUp, authority, caEnd, crlNumber, crlEntries, crlBytes, crlEnd, crlFile,
		keysReady, keysRoom, keysTaken, keysWaited,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What is not known is left out.
func (w *watch) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	if size, err := w.StoreBytes(); err == nil {
		gauge(storeBytes, float64(size))
	}
	for alg, s := range w.Keys() {
		if s.Capacity > 0 {
			gauge(keysReady, float64(s.Ready), string(alg))
			gauge(keysRoom, float64(s.Capacity), string(alg))
		}
		count(keysTaken, s.Used, string(alg))
		count(keysWaited, s.Waited, string(alg))
	}
	gauge(revokerUp, truth(w.Down() == nil))
	w.mu.Lock()
	defer w.mu.Unlock()
	gauge(authority, truth(w.failed == nil))
	if w.unread == nil {
		gauge(pending, float64(w.pending))
		gauge(unrevoked, float64(w.impossible))
		gauge(oldestAge, w.age().Seconds())
	}
	if w.status.Subject != "" {
		w.collectCA(gauge)
	}
}

func (w *watch) collectCA(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	s := w.status
	gauge(caEnd, float64(s.NotAfter.Unix()))
	if n, ok := new(big.Float).SetString(s.CRL.Number); ok {
		number, _ := n.Float64()
		gauge(crlNumber, number)
	}
	gauge(crlEntries, float64(s.CRL.Entries))
	gauge(crlBytes, float64(s.Bytes))
	seen := map[string]bool{} // somebody may have put two of one issuer there
	for _, c := range append([]ca.CRLStatus{s.CRL}, s.Foreign...) {
		if !c.NextUpdate.IsZero() && !seen[c.Issuer] {
			gauge(crlEnd, float64(c.NextUpdate.Unix()), c.Issuer)
		}
		seen[c.Issuer] = true
	}
	for _, f := range s.Files {
		gauge(crlFile, truth(f.Error == ""), f.Path)
	}
}

// age is that of the oldest pending revocation; the lock is held.
func (w *watch) age() time.Duration {
	if w.oldest.IsZero() {
		return 0
	}
	return max(0, w.Now().Sub(w.oldest))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
