package daemon

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/ca"
)

// The log says that the CA has ended or has not begun, at the start and again, even if the authority
// answers late. It is silent for a CA in force.
func TestLogNotInForce(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		notBefore, notAfter time.Time
		want                string
	}{
		"ended":     {now.Add(-2 * time.Hour), now, "ended at 2026-01-02T03:04:05Z"},
		"not begun": {now.Add(time.Second), now.Add(time.Hour), "not valid before 2026-01-02T03:04:06Z"},
		"in force":  {now, now.Add(time.Hour), ""},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			log, hook := logtest.NewNullLogger()
			asked := 0
			logNotInForce(ctx, func(context.Context) (ca.Status, error) {
				if asked++; asked == 1 {
					return ca.Status{}, errors.New("it does not answer yet")
				}
				if asked == 4 {
					cancel()
				}
				return ca.Status{Subject: "CN=ca", NotBefore: c.notBefore, NotAfter: c.notAfter}, nil
			}, func() time.Time { return now }, time.Millisecond, log)
			entries := hook.AllEntries()
			if c.want == "" && len(entries) > 0 || c.want != "" && len(entries) != 3 {
				t.Fatalf("%d lines in the log", len(entries))
			}
			for _, e := range entries {
				if err, _ := e.Data["error"].(error); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("logged %v, want %q", e.Data, c.want)
				}
			}
		})
	}
}
