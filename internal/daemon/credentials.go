package daemon

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/node"
)

// credentials are those of espm and its callers that have an end, as far as they are read yet.
func (d *daemon) credentials() []node.Credential {
	var all []node.Credential
	if trust := d.trust.Load(); trust != nil {
		all = append(all, trust.Credential())
	}
	if d.client != nil {
		all = append(all, d.client())
	}
	if tokens := d.tokens.Load(); tokens != nil {
		all = append(all, tokens.Credentials()...)
	}
	return all
}

// logEndingAgain is how often the log says that a credential ends. A renewed one that ends later is a new one.
const logEndingAgain = 24 * time.Hour

// logEnding logs each credential whose end is near or past: as soon as it is, and then periodically.
func logEnding(ctx context.Context, credentials func() []node.Credential, now func() time.Time, period time.Duration, log logrus.FieldLogger) {
	logged := map[node.Credential]time.Time{}
	for {
		for _, c := range credentials() {
			if at, before := logged[c]; !c.Ending(now()) || before && now().Sub(at) < period {
				continue
			}
			logged[c] = now()
			level := logrus.WarnLevel
			if c.Ended(now()) {
				level = logrus.ErrorLevel
			}
			log.WithFields(logrus.Fields{"kind": c.Kind, "name": c.Name, "not_after": c.NotAfter.UTC()}).Log(level, c.Trouble(now())+": renew it")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(recheck, period)):
		}
	}
}
