package doctor

import (
	"context"
	"strings"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/shell"
)

// missed is how long a token that has expired is told of.
const missed = 7 * 24 * time.Hour

// checkCredentials looks at what ends: the certificates that espm shows, and tokens, if a daemon answers.
func checkCredentials(ctx context.Context, h *Host) []Finding {
	certificates, err := h.Certificates(ctx)
	var all []Finding
	if err != nil {
		all = append(all, found(Failure, "", "espm's own certificates can't be read: %v", err))
	}
	var tokens []node.Credential
	if path, local := strings.CutPrefix(h.Config.Listen, "unix://"); local && dial(ctx, path) == nil {
		if tokens, err = h.Tokens(ctx); err != nil {
			all = append(all, found(Warning, "", "the daemon can't be asked for its tokens: %v", err))
		}
	}
	for _, c := range append(certificates, tokens...) {
		token := c.Kind == node.BearerToken
		if !c.Ending(h.Now()) || token && h.Now().Sub(c.NotAfter) > missed {
			continue
		}
		severity, mend := Warning, ""
		switch {
		case token:
			mend = "espm token rotate " + shell.Quote(c.Name) + " --out FILE"
		case c.Ended(h.Now()):
			severity = Failure
		}
		all = append(all, found(severity, mend, "%s: renew it", c.Trouble(h.Now())))
	}
	return good(all, "no certificate and no token ends soon")
}
