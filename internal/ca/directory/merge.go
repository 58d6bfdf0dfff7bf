package directory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/pemfile"
)

// look returns the chain that ca_crl.pem is to hold, after what others made of it
// and of its copies. Nobody should write there; who does, such as
// `puppetserver ca` by hand, must not bring a revoked certificate to life:
//   - what was revoked elsewhere with the CA's key is kept, in a CRL with a
//     number above both;
//   - an older or unreadable file is replaced;
//   - the other issuers' CRLs are taken as they are, if their issuers signed them: whoever
//     holds their keys renews them there.
//
// Unless thorough, files that look untouched are not read.
func (a *crlKeeper) look(thorough bool) (*crlChain, error) {
	current := a.crl.Load()
	data, err := a.own.differs(current.pem, thorough)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.opts.Log.WithField("path", a.own.path).Warn("the CRL was removed by somebody; it is written again")
		a.unsynced = true
	case err != nil:
		return nil, unavailable(err)
	case data != nil:
		if err := a.reconcile(data); err != nil {
			a.own.seen = pemfile.Stamp{} // it is not settled: read it again
			return nil, err
		}
	case !a.own.same:
		a.unsynced = true
	}
	for _, f := range a.copies {
		stood := f.same
		data, err := f.differs(a.crl.Load().pem, thorough)
		if err != nil && stood {
			a.opts.Log.WithError(err).Warn("the published CRL was removed by somebody; it is written again")
		}
		if err != nil || data == nil {
			continue // publish writes it, and says why it can't
		}
		a.opts.Log.WithField("path", f.path).Warn("the published CRL was changed by somebody; it is written again")
		theirs, err := parseCRLs(data, a.chain)
		if err != nil {
			continue
		}
		// Its foreign CRLs don't matter: those of ca_crl.pem count.
		if err := a.absorb(f, theirs.own()); err != nil {
			f.seen = pemfile.Stamp{} // it is not settled: read it again
			return nil, err
		}
	}
	return a.crl.Load(), nil
}

// reconcile settles what to do about a ca_crl.pem that somebody wrote.
func (a *crlKeeper) reconcile(data []byte) error {
	current := a.crl.Load()
	if bytes.Equal(data, current.pem) {
		return nil
	}
	theirs, err := parseCRLs(data, a.chain)
	if err != nil {
		if changed := a.replaced(); changed != nil {
			return unavailable(changed)
		}
		a.opts.Log.WithError(err).WithField("path", a.own.path).Warn("the CRL was changed by somebody, to something useless; it is written again")
		a.unsynced = true
		return nil
	}
	a.warnOfBad(theirs.foreign, "the one known before is kept")
	foreign := current.foreign
	theirs.foreign = latest(theirs.foreign, current.foreign)
	same := slices.EqualFunc(theirs.foreign, foreign, func(x, y foreignCRL) bool { return bytes.Equal(x.pem, y.pem) })
	if !same {
		a.opts.Log.WithField("path", a.own.path).Info("other issuers' CRLs were renewed")
		current = current.withForeign(theirs.foreign)
		a.crl.Store(current)
		for _, f := range a.copies {
			f.same = false
		}
	}
	if bytes.Equal(data, current.pem) {
		a.own.same = true
		return nil
	}
	a.opts.Log.WithFields(logrus.Fields{"path": a.own.path, "number": theirs.number, "want": current.number}).
		Warn("the CRL was changed by somebody; it is written again")
	a.unsynced = true
	return a.absorb(a.own, theirs.own())
}

// replaced tells whether the CA itself was exchanged under a running espm,
// whose CRL must not take the place of the new one's.
func (a *folder) replaced() error {
	data, err := os.ReadFile(a.file("ca_crt.pem"))
	if err != nil {
		return err
	}
	_, clean, err := parseCertificates(data)
	if err != nil || !bytes.Equal(clean, a.chainPEM) {
		return fmt.Errorf("%s is not the certificate that espm started with; restart it", a.file("ca_crt.pem"))
	}
	return nil
}

// absorb keeps what CRLs of ours that somebody else made list and a.crl does
// not, or have a later number.
func (a *crlKeeper) absorb(f *crlFile, theirs []*crlChain) error {
	current := a.crl.Load()
	list, number := current.entryList, current.number
	var added []serialKey
	seen := make(map[serialKey]bool)
	for _, c := range theirs {
		for e := range c.entries.All() {
			if key, ok := e.Key(); ok && !seen[key] && !a.listed.has(key) {
				seen[key] = true
				added = append(added, key)
				list.take(e)
			}
		}
		if c.number.Cmp(number) > 0 {
			number = c.number
		}
	}
	if len(added) == 0 && number == current.number {
		return nil
	}
	next, err := a.signer.next(following(number), list, current.foreign, a.opts.Now(), a.opts.CRLValidity)
	if err != nil {
		return err
	}
	a.opts.Log.WithFields(logrus.Fields{"path": f.path, "entries": len(added), "crl_number": next.number}).
		Warn("certificates were revoked by somebody else; their entries are kept, in a new CRL")
	return a.put(next, delta{added: added})
}

// mergeFound settles at the start what several CRLs of the CA's own list: those of
// ca_crl.pem, and those of the copies, nil where there is nothing to learn from one.
func (a *crlKeeper) mergeFound(held *crlContents, copies []*crlContents) error {
	if err := a.absorb(a.own, held.more); err != nil {
		return err
	}
	for i, copied := range copies {
		if copied == nil {
			continue
		}
		var theirs []*crlChain
		for _, c := range copied.own() {
			c, err := a.withoutPruned(c)
			if err != nil {
				return err
			}
			theirs = append(theirs, c)
		}
		if err := a.absorb(a.copies[i], theirs); err != nil {
			return err
		}
	}
	if a.own.same {
		return nil
	}
	return a.put(a.crl.Load(), delta{})
}

// withoutPruned leaves out what a.crl does not list because it has ended: a copy that
// could not be written has it still.
func (a *crlKeeper) withoutPruned(c *crlChain) (*crlChain, error) {
	ends := make(map[serialKey]end) // of those that it has more
	for e := range c.entries.All() {
		if key, ok := e.Key(); ok && !a.listed.has(key) {
			ends[key] = unknownEnd
		}
	}
	if len(ends) == 0 {
		return c, nil
	}
	err := a.inventory.ends(context.Background(), func(key serialKey, e end) {
		if known, ok := ends[key]; ok {
			ends[key] = max(known, e) // the later one, should a serial stand there twice
		}
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, unavailable(err)
	}
	signed := a.crl.Load().thisUpdate
	if now := a.opts.Now(); now.Before(signed) {
		signed = now
	}
	var gone []serialKey
	for key, e := range ends {
		if e.before(signed) {
			gone = append(gone, key)
		}
	}
	kept := *c
	kept.entryList = c.without(gone)
	return &kept, nil
}

// latest returns the CRLs of theirs, and where ours has a later one of the same issuer, or
// the only good one, that.
func latest(theirs, ours []foreignCRL) []foreignCRL {
	var out []foreignCRL
	for _, f := range theirs {
		for _, o := range ours {
			if o.rawIssuer == f.rawIssuer && (f.bad != nil || o.bad == nil && o.thisUpdate.After(f.thisUpdate)) {
				f = o
			}
		}
		if !slices.ContainsFunc(out, func(o foreignCRL) bool { return bytes.Equal(o.pem, f.pem) }) {
			out = append(out, f)
		}
	}
	return out
}

// warnOfBad tells of other issuers' CRLs that these did not sign.
func (a *crlKeeper) warnOfBad(foreign []foreignCRL, what string) {
	for _, f := range foreign {
		if f.bad != nil {
			a.opts.Log.WithError(f.bad).WithFields(logrus.Fields{"issuer": f.issuer, "path": a.own.path}).
				Warn("the CRL of another issuer was not signed by it; " + what)
		}
	}
}
