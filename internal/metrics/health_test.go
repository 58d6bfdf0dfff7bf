package metrics

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

type fakeStore struct {
	err    error
	oldest *node.Revocation
}

func (s *fakeStore) Revision(context.Context) (int64, error) { return 7, s.err }

func (s *fakeStore) CountPending(context.Context) (int, *node.Revocation, error) {
	if s.oldest == nil {
		return 0, nil, s.err
	}
	return 1, s.oldest, s.err
}

func (s *fakeStore) CountImpossible(context.Context) (int, error) { return 0, s.err }

// A restart may help if espm is not live; it does not help if espm is live and not ready.
func TestHealth(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	good := ca.Status{Subject: "CN=ca", NotAfter: now.Add(time.Hour), CRL: ca.CRLStatus{NextUpdate: now.Add(time.Hour)}}
	ended, early, ranOut := good, good, good
	ended.NotAfter = now.Add(-time.Second)
	early.NotBefore = now.Add(time.Second)
	ranOut.CRL.NextUpdate = now.Add(-time.Second)
	for what, c := range map[string]struct {
		store       fakeStore
		status      ca.Status
		failed      error
		down        *node.Failure
		clock       error
		live, ready bool
		authority   string
		age         float64
		credentials []node.Credential
	}{
		"all well":          {status: good, live: true, ready: true, authority: "ok"},
		"one pending":       {status: good, store: fakeStore{oldest: &node.Revocation{CreatedAt: now.Add(-time.Minute)}}, live: true, ready: true, authority: "ok", age: 60},
		"store fails":       {status: good, store: fakeStore{err: errors.New("disk on fire")}, authority: "ok"},
		"authority is down": {failed: errors.New("refused"), live: true, authority: "refused"},
		"can't revoke":      {status: good, down: &node.Failure{Error: "no space"}, live: true, authority: "revocations wait: no space"},
		"clock is wrong":    {status: good, clock: errors.New("years ahead"), live: true, authority: "ok"},
		"CA ended":          {status: ended, live: true, authority: "the CA's certificate ended at 2026-01-02T03:04:04Z"},
		"CA not begun":      {status: early, live: true, authority: "the CA's certificate is not valid before 2026-01-02T03:04:06Z: is the clock right?"},
		"certificate ended": {status: good, live: true, authority: "ok", credentials: []node.Credential{{Kind: node.ServerCertificate, NotAfter: now}}},
		"token ended":       {status: good, live: true, ready: true, authority: "ok", credentials: []node.Credential{{Kind: node.BearerToken, NotAfter: now}}},
		"CRL ran out":       {status: ranOut, live: true, authority: "the CA's CRL ran out 2026-01-02T03:04:04Z"},
	} {
		w := &watch{failed: errNotChecked, Sources: Sources{
			Store: &c.store, Down: func() *node.Failure { return c.down }, Now: func() time.Time { return now }, Clock: func() error { return c.clock },
			Credentials: func() []node.Credential { return c.credentials },
			Brief:       func(context.Context) (ca.Status, error) { return c.status, c.failed },
		}}
		if h := w.health(t.Context()); h.Ready || h.Authority != "not asked yet" && h.Authority != "" {
			t.Errorf("%s: before the first check: %+v", what, h)
		}
		w.check(t.Context())
		h := w.health(t.Context())
		if h.Live != c.live || h.Ready != c.ready || h.Authority != c.authority || h.OldestPendingSeconds != c.age {
			t.Errorf("%s: %+v", what, h)
		}
	}
}

// The CRL of an issuer outside of the chain has no series: no agent uses it, so its end must not raise an alert.
func TestCRLOutsideTheChain(t *testing.T) {
	now := time.Now()
	w := &watch{status: ca.Status{
		CRL:     ca.CRLStatus{Issuer: "CN=ca", NextUpdate: now},
		Foreign: []ca.CRLStatus{{Issuer: "CN=root", NextUpdate: now}, {Issuer: "CN=stray", NextUpdate: now, Outside: true}},
	}}
	var issuers []string
	w.collectCA(func(d *prometheus.Desc, _ float64, labels ...string) {
		if d == crlEnd {
			issuers = append(issuers, labels...)
		}
	})
	if !slices.Equal(issuers, []string{"CN=ca", "CN=root"}) {
		t.Errorf("series of %q", issuers)
	}
}
