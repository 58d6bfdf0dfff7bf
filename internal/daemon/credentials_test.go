package daemon

import (
	"context"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/node"
)

// The log says once in a while which credential ends.
func TestLogEnding(t *testing.T) {
	log, hook := logtest.NewNullLogger()
	now := time.Now()
	all := []node.Credential{
		{Kind: node.BearerToken, Name: "ci", NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Minute)},
		{Kind: node.ServerCertificate, Name: "/cert.pem", NotBefore: now.Add(-time.Hour), NotAfter: now},
		{Kind: node.BearerToken, Name: "fresh", NotBefore: now, NotAfter: now.Add(time.Hour)},
	}
	ctx, cancel := context.WithCancel(t.Context())
	rounds := 0
	logEnding(ctx, func() []node.Credential {
		if rounds++; rounds == 3 {
			cancel()
		}
		return all
	}, func() time.Time { return now }, time.Millisecond, log)
	lines := hook.AllEntries()
	if len(lines) != 2 || lines[0].Data["name"] != "ci" || lines[0].Level != logrus.WarnLevel || lines[1].Data["kind"] != node.ServerCertificate || lines[1].Level != logrus.ErrorLevel {
		t.Errorf("logged: %+v", lines)
	}
}
