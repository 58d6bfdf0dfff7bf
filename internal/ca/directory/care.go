package directory

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	careEvery  = time.Minute
	pruneEvery = 24 * time.Hour
	learnEvery = time.Hour
	alarmEvery = 24 * time.Hour

	// alarmAhead is how long before the end of another issuer's CRL the warnings begin.
	alarmAhead = 30 * 24 * time.Hour

	// clockSkew is how far a CRL's thisUpdate may be in the future. If it is further, the clock
	// was wrong when the CRL was signed.
	clockSkew = 5 * time.Minute
)

// care is what Care remembers between its calls.
type care struct {
	pruned  time.Duration        // uptime at the last pruning; the first pruning is a day after the start, see ended
	learned time.Time            // when learnEnds was last done
	alarmed map[string]time.Time // when alarm last logged, by raw issuer
	stored  *big.Int             // the number in numberFile
	logged  string               // the last error logged
}

// Run calls Care once a minute until ctx is done. Call Run once.
func (a *caretaker) Run(ctx context.Context) {
	tick := time.NewTicker(careEvery)
	defer tick.Stop()
	for {
		err := a.Care(ctx)
		if ctx.Err() != nil {
			return
		}
		a.logFailure(err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// logFailure logs an error of Care, but not the same error twice in a row.
func (a *caretaker) logFailure(err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	if now == a.care.logged {
		return
	}
	a.care.logged = now
	if err != nil {
		a.opts.Log.WithError(err).Error("the CRL or a copy of it is not up to date; espm retries every minute")
	}
}

// Care keeps the CRL and its copies correct between revocations. It
//   - restores ca_crl.pem and its copies if another program changed them: see checkFiles;
//   - signs a new CRL when a third of the validity is left, when the last CRL was signed
//     while the clock was ahead, or when another program made the last CRL and it has a flaw: see flawOf;
//   - removes certificates from the CRL that ended longer ago than Options.KeepExpired,
//     once a day: see ended;
//   - logs a warning, once a day, when another issuer's CRL ends soon;
//   - retries copies that could not be written. A copy never gets a CRL that is not durable in
//     ca_crl.pem.
//
// Care does all of these even if one fails. The error joins the failures.
func (a *caretaker) Care(ctx context.Context) error {
	a.inventory.forget()
	now := a.opts.Now()
	learning := a.learnEnds(ctx, now)
	a.revoking.Lock()
	defer a.revoking.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	current, err := a.checkFiles(true)
	if err != nil {
		return errors.Join(learning, fmt.Errorf("CRL: %w", err))
	}
	err = a.renew(current, now)
	current = a.crl.Load()
	if err == nil {
		err = a.noteNumber(current.number)
	}
	a.alarm(current, now)
	if !a.unsynced {
		err = errors.Join(err, a.publish(current))
	}
	return errors.Join(learning, err)
}

// renew signs a new CRL if one is due. If not, it repeats a write of ca_crl.pem that failed.
func (a *caretaker) renew(current *crlChain, now time.Time) error {
	due := current.flaw != "" || current.nextUpdate.Sub(now) < a.opts.CRLValidity/3 || current.thisUpdate.After(now.Add(clockSkew))
	ended := a.ended(now)
	pruning := len(ended) > 0
	if !due && !pruning {
		if a.unsynced {
			return a.writeOwn(current, delta{})
		}
		return nil
	}
	// An entry stays until one CRL that was issued after the certificate's end has had it (RFC 5280
	// section 3.3), for those who verify old signatures.
	ended = slices.DeleteFunc(ended, func(key serialKey) bool { return !a.listed.end(key).before(current.thisUpdate) })
	next, err := a.nextCRL(following(current.number), current.without(ended), current.foreign, now)
	if err != nil {
		return err
	}
	if err := a.writeOwn(next, delta{removed: ended}); err != nil {
		return err
	}
	if pruning {
		a.care.pruned = a.uptime()
	}
	log := a.opts.Log.WithFields(logrus.Fields{
		"crl_number": next.number, "next_update": next.nextUpdate, "entries": next.count, "expired": len(ended),
	})
	if current.flaw != "" {
		log = log.WithField("flaw", current.flaw)
	}
	log.Info("a new CRL was signed")
	return nil
}

// ended returns, once a day, the serials to remove from the CRL: their certificates ended
// longer ago than Options.KeepExpired. A revoked certificate that is removed too early is valid again.
// So the clock must agree with a second measure: the time at the start plus the
// uptime. The first removal is a day after the start, as a wrong clock may be corrected by then.
func (a *caretaker) ended(now time.Time) []serialKey {
	uptime := a.uptime()
	if uptime-a.care.pruned < pruneEvery {
		return nil
	}
	if measured := a.started.Add(uptime); measured.Before(now) {
		now = measured
	}
	ended := a.listed.endedBefore(now.Add(-a.opts.KeepExpired))
	if len(ended) == 0 {
		a.care.pruned = uptime
	}
	return ended
}

// uptime returns the time since Open.
func (a *folder) uptime() time.Duration { return a.opts.Uptime() - a.startedAt }

// learnEnds reads from the inventory when listed certificates end. It runs without the lock, as
// the inventory may be long.
func (a *caretaker) learnEnds(ctx context.Context, now time.Time) error {
	if !isDue(a.care.learned, now, learnEvery) {
		return nil
	}
	if a.listed.ask() {
		err := a.inventory.ends(ctx, a.listed.has, a.listed.answer)
		a.listed.asked(err == nil)
		if err != nil {
			return unavailable(err)
		}
	}
	a.care.learned = now
	return nil
}

// alarm logs which CRLs of other issuers end soon. espm can't sign those. Agents don't check issuers outside the chain.
func (a *caretaker) alarm(c *crlChain, now time.Time) {
	for _, f := range c.foreign {
		left := f.nextUpdate.Sub(now)
		if f.outside || f.nextUpdate.IsZero() || left > alarmAhead || !isDue(a.care.alarmed[f.rawIssuer], now, alarmEvery) {
			continue
		}
		if a.care.alarmed == nil {
			a.care.alarmed = make(map[string]time.Time)
		}
		a.care.alarmed[f.rawIssuer] = now
		log := a.opts.Log.WithFields(logrus.Fields{"issuer": f.issuer, "next_update": f.nextUpdate, "path": a.own.path})
		if left > 0 {
			log.Warn("the CRL of another issuer expires soon: have it renewed and put into the file")
		} else {
			log.Error("the CRL of another issuer has expired: agents refuse the chain until a new one is put into the file")
		}
	}
}

// isDue reports whether something last done at last is due again. It also is if last is in the
// future: the clock was ahead then.
func isDue(last, now time.Time, every time.Duration) bool {
	return now.Before(last) || now.Sub(last) >= every
}
