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

	// alarmAhead is how long before another issuer's CRL runs out the alarm begins.
	alarmAhead = 30 * 24 * time.Hour

	// clockSkew is how far in the future a CRL's thisUpdate may lie before it is taken
	// for one that was signed while the clock was wrong.
	clockSkew = 5 * time.Minute
)

// care is what is known from one round of Care to the next.
type care struct {
	pruned  time.Duration // uptime; what a wrong clock would prune is lost, so the first time is a day after the start
	learned time.Time
	alarmed map[string]time.Time // by raw issuer
	noted   *big.Int             // the number in numberFile
	failed  string               // the last error logged
}

// Run cares for the CRL until ctx is done, once a minute. It is called once.
func (a *caretaker) Run(ctx context.Context) {
	tick := time.NewTicker(careEvery)
	defer tick.Stop()
	for {
		err := a.Care(ctx)
		if ctx.Err() != nil {
			return
		}
		a.complain(err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// complain logs what Care could not do, once.
func (a *caretaker) complain(err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	if now == a.care.failed {
		return
	}
	a.care.failed = now
	if err != nil {
		a.opts.Log.WithError(err).Error("the CRL is not in order everywhere; espm tries again every minute")
	}
}

// Care puts right what needs no revocation to become wrong. It
//   - undoes what somebody else did to ca_crl.pem and its copies: see look;
//   - signs a CRL when a third of its validity is left, when the last one was signed
//     by a clock that was ahead, or when one that was taken over has a flaw: see flawOf;
//   - takes certificates off the CRL that ended longer ago than Options.KeepExpired,
//     once a day: see ended;
//   - says in the log, once a day, when another issuer's CRL runs out;
//   - writes copies that could not be written, but not with what ca_crl.pem does not durably hold.
//
// An error says what could not be done; all else was.
func (a *caretaker) Care(ctx context.Context) error {
	a.inventory.forget()
	now := a.opts.Now()
	learning := a.learn(ctx, now)
	a.revoking.Lock()
	defer a.revoking.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	current, err := a.look(true)
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

// renew signs a CRL if its time has come, and puts ca_crl.pem on the disk if that is due.
func (a *caretaker) renew(current *crlChain, now time.Time) error {
	due := current.flaw != "" || current.nextUpdate.Sub(now) < a.opts.CRLValidity/3 || current.thisUpdate.After(now.Add(clockSkew))
	ended := a.ended(now)
	pruning := len(ended) > 0
	if !due && !pruning {
		if a.unsynced {
			return a.put(current, delta{})
		}
		return nil
	}
	// An entry stays until it stood on a CRL that was issued after its certificate's end
	// (RFC 5280 section 3.3): what verifies an old signature is to find it there.
	ended = slices.DeleteFunc(ended, func(key serialKey) bool { return !a.listed.end(key).before(current.thisUpdate) })
	next, err := a.signer.next(following(current.number), current.without(ended), current.foreign, now, a.opts.CRLValidity)
	if err != nil {
		return err
	}
	if err := a.put(next, delta{removed: ended}); err != nil {
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
	log.Info("CRL signed anew")
	return nil
}

// ended returns, once a day, the serials of the certificates that have ended long enough
// ago to leave the CRL. A revoked certificate that leaves it too early is valid again, so
// the clock alone does not say: it must be so as well by the clock at the start and the
// time that has really passed since, and a day of that, in which a clock that was wrong
// at the start is put right.
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

// uptime is since Open.
func (a *folder) uptime() time.Duration { return a.opts.Uptime() - a.startedAt }

// learn asks the inventory when listed certificates end, of which it isn't
// known. It holds up nobody.
func (a *caretaker) learn(ctx context.Context, now time.Time) error {
	if !again(a.care.learned, now, learnEvery) {
		return nil
	}
	if a.listed.ask() {
		err := a.inventory.ends(ctx, a.listed.answer)
		a.listed.asked(err == nil)
		if err != nil {
			return unavailable(err)
		}
	}
	a.care.learned = now
	return nil
}

// alarm tells when the CRLs run out that espm can't sign, of the issuers that agents check.
func (a *caretaker) alarm(c *crlChain, now time.Time) {
	for _, f := range c.foreign {
		left := f.nextUpdate.Sub(now)
		if f.outside || f.nextUpdate.IsZero() || left > alarmAhead || !again(a.care.alarmed[f.rawIssuer], now, alarmEvery) {
			continue
		}
		if a.care.alarmed == nil {
			a.care.alarmed = make(map[string]time.Time)
		}
		a.care.alarmed[f.rawIssuer] = now
		log := a.opts.Log.WithFields(logrus.Fields{"issuer": f.issuer, "next_update": f.nextUpdate, "path": a.own.path})
		if left > 0 {
			log.Warn("the CRL of another issuer runs out: have it renewed and put into the file")
		} else {
			log.Error("the CRL of another issuer has run out: agents refuse the chain until a new one is put into the file")
		}
	}
}

// again reports whether what was last done then is due; so it is after a clock that was ahead was put right.
func again(last, now time.Time, every time.Duration) bool {
	return now.Before(last) || now.Sub(last) >= every
}
