package puppetserver

import (
	"context"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

// Listed fetches the server's CRL. If the server does not answer, Listed uses the last known CRL, unless
// espm has sent a revocation since. While the server may still work on a revocation whose
// answer was lost, the error is a *node.BusyError.
func (a *revoker) Listed(ctx context.Context, serial node.Serial) (crlNumber string, err error) {
	if err := a.begin(ctx); err != nil {
		return "", err
	}
	defer a.end()
	if left := a.busyFor(ctx); left > 0 {
		return "", &node.BusyError{
			Reason:     "the answer to a revocation was lost, and Puppet Server may still work on it",
			RetryAfter: (left + time.Second - 1).Truncate(time.Second),
		}
	}
	number, listed, err := a.listed(ctx, serial)
	if err != nil && !a.crlStale {
		number, listed, err = a.trust.Load().lists(serial)
	}
	if err != nil || !listed[serial] {
		return "", err
	}
	return number, nil
}

// listed returns which of the serials the server's current CRL lists, and its number.
func (a *server) listed(ctx context.Context, serials ...node.Serial) (number string, listed map[node.Serial]bool, err error) {
	t, err := a.trusted(ctx, 0)
	if err != nil {
		return "", nil, err
	}
	return t.lists(serials...)
}

// lists returns which of the serials the CRL lists, and its number. A nil trust lists none.
func (t *trust) lists(serials ...node.Serial) (number string, listed map[node.Serial]bool, err error) {
	if t == nil {
		return "", nil, nil
	}
	c, err := t.crls()
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	}
	wanted := make(map[string]node.Serial, len(serials))
	for _, s := range serials {
		if n, ok := s.Int(); ok {
			wanted[string(n.Bytes())] = s
		}
	}
	listed = make(map[node.Serial]bool, len(serials))
	for e := range c.own.Entries.All() {
		if b, ok := e.Bytes(); ok {
			if s, ok := wanted[string(b)]; ok {
				listed[s] = true
			}
		}
	}
	return pemfile.NumberOf(c.own).String(), listed, nil
}
