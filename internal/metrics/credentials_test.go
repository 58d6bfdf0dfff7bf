package metrics

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Each kind has the end that comes first, and whether one is near. A kind that espm has none of has no end.
func TestCredentialMetrics(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	token := func(name string, end time.Duration) node.Credential {
		return node.Credential{Kind: node.BearerToken, Name: name, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(end)}
	}
	w := &watch{failed: errNotChecked, Sources: Sources{
		Store: &fakeStore{}, Down: func() *node.Failure { return nil }, Now: func() time.Time { return now }, Clock: func() error { return nil },
		Synchronized: func() (bool, error) { return false, errors.New("unknown") },
		StoreBytes:   func() (int64, error) { return 0, errors.New("unknown") }, Keys: func() map[ca.KeyAlgorithm]ca.PoolStats { return nil },
		Brief: func(context.Context) (ca.Status, error) { return ca.Status{}, errors.New("down") },
		Credentials: func() []node.Credential {
			return []node.Credential{token("late", 9*time.Hour), token("soon", time.Minute),
				{Kind: node.ServerCertificate, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour)}}
		},
	}}
	registry := prometheus.NewRegistry()
	registry.MustRegister(w)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if strings.HasPrefix(f.GetName(), "espm_credential_") {
				got[f.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	want := map[string]float64{
		"espm_credential_ending client_certificate":                      0,
		"espm_credential_ending server_certificate":                      0,
		"espm_credential_ending token":                                   1,
		"espm_credential_not_after_timestamp_seconds server_certificate": 1_003_600_000,
		"espm_credential_not_after_timestamp_seconds token":              1_000_000_060,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
