package directory

import (
	"fmt"
	"math/big"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// Clock says whether the system's clock can be believed; see package clock. Its methods may be called at once.
type Clock interface {
	// Learn is told when the CA's certificate begins and when its CRL was signed.
	Learn(begins, signed time.Time)
	// Check returns nil if the clock can be believed. Otherwise the error wraps node.ErrUnavailable.
	Check() error
	// Latest returns a time that has passed, zero if none is known.
	Latest() time.Time
}

// anyClock is a Clock that believes everything.
type anyClock struct{}

func (anyClock) Learn(_, _ time.Time) {}
func (anyClock) Check() error         { return nil }
func (anyClock) Latest() time.Time    { return time.Time{} }

// nextCRL is signer.next, but signs nothing with a clock that can't be believed.
func (a *crlKeeper) nextCRL(number *big.Int, list entryList, foreign []foreignCRL, now time.Time) (*crlChain, error) {
	if err := a.opts.Clock.Check(); err != nil {
		return nil, fmt.Errorf("sign CRL %d: %w", number, err)
	}
	next, err := a.signer.next(number, list, foreign, now, a.opts.CRLValidity)
	if err != nil {
		return nil, err
	}
	return next, a.checkEnd(next)
}

// checkEnd returns an error for a CRL that has ended. With it, agents refuse every certificate.
func (a *folder) checkEnd(c *crlChain) error {
	if latest := a.opts.Clock.Latest(); !c.nextUpdate.IsZero() && !c.nextUpdate.After(latest) {
		return fmt.Errorf("%w: CRL %d ends at %s, and espm's newest record is of %s: is the clock right?", node.ErrUnavailable, c.number,
			c.nextUpdate.UTC().Format(time.RFC3339), latest.UTC().Format(time.RFC3339))
	}
	return nil
}
