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

// Store is the part of the store that is read for metrics and probes.
type Store interface {
	Revision(ctx context.Context) (int64, error)
	CountPending(ctx context.Context) (n int, oldest *node.Revocation, err error)
	CountImpossible(ctx context.Context) (n int, err error)
}

// Sources are the parts of espm that values are read from.
type Sources struct {
	Store      Store
	StoreBytes func() (int64, error)
	Brief      func(ctx context.Context) (ca.Status, error) // status of the authority; see ca.Brief
	Down       func() *node.Failure                         // why no revocation can be carried out; nil if revocations can be
	Keys       func() map[ca.KeyAlgorithm]ca.PoolStats
	Now        func() time.Time
	Clock      func() error // why the clock is not believed; nil: it is
	// Synchronized says whether a time service keeps the kernel's clock right.
	Synchronized func() (bool, error)
	// Credentials are those of espm and its callers that have an end.
	Credentials func() []node.Credential
}

// checkInterval is the time between two checks of the authority and the queue. A scrape or a probe checks
// neither: the authority may be slow to answer, and the queue may be long.
const checkInterval = 15 * time.Second

// checkLimit bounds the time of one check.
const checkLimit = 30 * time.Second

// watch holds the result of the last check.
type watch struct {
	Sources

	mu         sync.Mutex
	status     ca.Status // the last that the authority returned
	failed     error     // error of the last check; nil if status is of that check
	pending    int
	impossible int
	oldest     time.Time // order time of the oldest pending revocation; zero if none is pending
	unread     error     // why the queue can't be read; nil if it was read
}

// run checks the authority and the queue until ctx is done.
func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		w.check(ctx)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (w *watch) check(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, checkLimit)
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
	oldestAge  = desc("espm_revocations_oldest_pending_seconds", "Age of the oldest pending revocation; 0 if none is pending.")
	revokerUp  = desc("espm_revocations_possible", "1: the authority carried out the last revocations, or none were tried; 0: it can't revoke.")
	believed   = desc("espm_clock_believed", "1: the clock agrees with espm's own records; 0: it does not, and nothing is signed.")
	kept       = desc("espm_clock_synchronized", "1: a time service keeps the kernel's clock right; 0: none does.")
	authority  = desc("espm_authority_up", "1: the authority answers; 0: it does not, and the metrics of CA and CRL are of its last answer.")
	caEnd      = desc("espm_ca_not_after_timestamp_seconds", "End of the CA's certificate.")
	crlNumber  = desc("espm_crl_number", "Number of the CA's own CRL.")
	crlEntries = desc("espm_crl_entries", "Entries of the CA's own CRL.")
	crlBytes   = desc("espm_crl_bytes", "All CRLs in PEM: what each agent downloads once a day.")
	crlEnd     = desc("espm_crl_next_update_timestamp_seconds", "When a CRL expires, by issuer: the CA's own and those of the CAs above it.", "issuer")
	crlFile    = desc("espm_crl_file_ok", "1: the file has the current CRL; 0: it can't be written.", "path")
	credEnd    = desc("espm_credential_not_after_timestamp_seconds", "End of the credential of a kind that ends first: the network listener's certificate, the client certificate for Puppet Server, or a token.", "kind")
	credEnding = desc("espm_credential_ending", "1: a credential of this kind ends within 30 days, or in the last fifth of a shorter life, or has ended; 0: none does.", "kind")
	keysReady  = desc("espm_key_pool_ready", "Keys in stock.", "algorithm")
	keysRoom   = desc("espm_key_pool_capacity", "The most keys that the pool holds; EC keys need no pool.", "algorithm")
	keysUsed   = desc("espm_keys_taken_total", "Keys that callers got.", "algorithm")
	keysWaited = desc("espm_keys_waited_total", "Keys that were generated while the caller waited.", "algorithm")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (w *watch) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		storeBytes, pending, unrevoked, oldestAge, revokerUp, believed, kept, authority, caEnd, crlNumber, crlEntries, crlBytes, crlEnd, crlFile,
		credEnd, credEnding, keysReady, keysRoom, keysUsed, keysWaited,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. It leaves out values that are not known: zero would be read as an
// expired CA.
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
		count(keysUsed, s.Used, string(alg))
		count(keysWaited, s.Waited, string(alg))
	}
	w.collectCredentials(gauge)
	gauge(revokerUp, truth(w.Down() == nil))
	gauge(believed, truth(w.Clock() == nil))
	if synchronized, err := w.Synchronized(); err == nil {
		gauge(kept, truth(synchronized))
	}
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

// collectCredentials has no series for a kind that espm has none of, other than that none ends.
func (w *watch) collectCredentials(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	first := map[string]time.Time{}
	ending := map[string]bool{}
	for _, c := range w.Credentials() {
		if end, ok := first[c.Kind]; !ok || c.NotAfter.Before(end) {
			first[c.Kind] = c.NotAfter
		}
		ending[c.Kind] = ending[c.Kind] || c.Ending(w.Now())
	}
	for _, kind := range node.CredentialKinds {
		gauge(credEnding, truth(ending[kind]), kind)
		if end, ok := first[kind]; ok {
			gauge(credEnd, float64(end.Unix()), kind)
		}
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
	done := map[string]bool{} // the CRL file may hold two CRLs of one issuer, and two equal series fail the scrape
	for _, c := range append([]ca.CRLStatus{s.CRL}, s.Foreign...) {
		if !c.Outside && !c.NextUpdate.IsZero() && !done[c.Issuer] {
			gauge(crlEnd, float64(c.NextUpdate.Unix()), c.Issuer)
		}
		done[c.Issuer] = true
	}
	for _, f := range s.Files {
		gauge(crlFile, truth(f.Error == ""), f.Path)
	}
}

// age returns the age of the oldest pending revocation. The caller holds w.mu.
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
