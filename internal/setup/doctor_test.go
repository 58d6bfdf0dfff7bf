package setup

import (
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
)

// The doctor is not told of the CRL of an issuer outside of the chain: its end is no failure.
func TestExamined(t *testing.T) {
	now := time.Now()
	got := examined(ca.Status{
		Subject: "CN=ca", NotBefore: now, CRL: ca.CRLStatus{Issuer: "CN=ca"},
		Foreign: []ca.CRLStatus{{Issuer: "CN=stray", Outside: true}, {Issuer: "CN=root"}},
	})
	if len(got.CRLs) != 2 || got.CRLs[1].Issuer != "CN=root" || !got.NotBefore.Equal(now) {
		t.Errorf("got %+v", got)
	}
}
