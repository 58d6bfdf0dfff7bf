package directory

import (
	"context"
	"errors"
	"fmt"
	"math/big"
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
)

// care is what is known from one round of Care to the next.
type care struct {
	pruned  time.Time
	learned time.Time
	alarmed map[string]time.Time // by raw issuer
	noted   *big.Int             // the number in numberFile
	failed  string               // the last error logged
}

// Run cares for the CRL until ctx is done, once a minute. It is called once.
func (a *Authority) Run(ctx context.Context) {
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
func (a *Authority) complain(err error) {
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
//   - signs a CRL when a third of its validity is left;
//   - takes certificates off the CRL that ended longer ago than Options.KeepExpired,
//     once a day;
//   - says in the log, once a day, when another issuer's CRL runs out;
//   - writes copies that could not be written.
//
// An error says what could not be done; all else was.
func (a *Authority) Care(ctx context.Context) error {
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
	return errors.Join(learning, err, a.publish(current))
}

// renew signs a CRL if its time has come, and puts ca_crl.pem on the disk if that is due.
func (a *Authority) renew(current *crlChain, now time.Time) error {
	due := current.nextUpdate.Sub(now) < a.opts.CRLValidity/3
	var ended []serialKey
	if due || now.Sub(a.care.pruned) >= pruneEvery {
		ended = a.listed.endedBefore(now.Add(-a.opts.KeepExpired))
	}
	if !due && len(ended) == 0 {
		if now.Sub(a.care.pruned) >= pruneEvery {
			a.care.pruned = now
		}
		if a.unsynced {
			return a.put(current, delta{})
		}
		return nil
	}
	entries, count, removed, err := a.prune(current, ended)
	if err != nil {
		return err
	}
	next, err := a.signer.next(following(current.number), entries, count, current.foreign, now, a.opts.CRLValidity)
	if err != nil {
		return err
	}
	if err := a.put(next, delta{removed: removed}); err != nil {
		return err
	}
	a.care.pruned = now
	a.opts.Log.WithFields(logrus.Fields{
		"crl_number": next.number, "next_update": next.nextUpdate, "entries": next.count, "expired": len(removed),
	}).Info("CRL signed anew")
	return nil
}

// prune leaves out the entries of certificates that have ended. Each stays until
// it stood on a CRL that was issued after its end (RFC 5280 section 3.3): what
// verifies an old signature is to find it there.
func (a *Authority) prune(c *crlChain, ended []serialKey) (entries []byte, count int, removed []serialKey, err error) {
	gone := make(map[serialKey]bool)
	for _, key := range ended {
		if a.listed.end(key).before(c.thisUpdate) {
			gone[key] = true
			removed = append(removed, key)
		}
	}
	if len(gone) == 0 {
		return c.entries, c.count, nil, nil
	}
	entries = make([]byte, 0, len(c.entries))
	err = eachEntry(c.entries, func(der []byte, key serialKey, ok bool) {
		if !ok || !gone[key] {
			entries = append(entries, der...)
			count++
		}
	})
	return entries, count, removed, err
}

// learn asks the inventory when listed certificates end, of which it isn't
// known. It holds up nobody.
func (a *Authority) learn(ctx context.Context, now time.Time) error {
	if now.Sub(a.care.learned) < learnEvery {
		return nil
	}
	wanted := a.listed.unknown()
	a.care.learned = now
	if len(wanted) == 0 {
		return nil
	}
	found, err := a.inventory.ends(ctx, wanted)
	if err != nil {
		return unavailable(err)
	}
	a.listed.setEnds(wanted, found)
	return nil
}

// alarm tells when the CRLs run out that espm can't sign.
func (a *Authority) alarm(c *crlChain, now time.Time) {
	for _, f := range c.foreign {
		left := f.nextUpdate.Sub(now)
		if f.nextUpdate.IsZero() || left > alarmAhead || now.Sub(a.care.alarmed[f.rawIssuer]) < alarmEvery {
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
