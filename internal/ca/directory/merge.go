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

// checkFiles returns the chain that ca_crl.pem must have. If another program changed ca_crl.pem or a copy,
// checkFiles merges its CRLs. No other program should write there. But if one does, such as
// `puppetserver ca`, no revoked certificate may become valid again:
//   - The new CRL keeps the entries that the other program added with the CA's key. Its number
//     is above both.
//   - An older or unreadable file is replaced.
//   - CRLs of other issuers are accepted if their issuers signed them. Their owners renew
//     them in this file.
//
// Unless thorough, checkFiles does not read files whose stamp is unchanged.
func (a *crlKeeper) checkFiles(thorough bool) (*crlChain, error) {
	current := a.crl.Load()
	data, err := a.own.differs(current.pem, thorough)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.opts.Log.WithField("path", a.own.path).Warn("another program removed the CRL; espm writes it again")
		a.unsynced = true
	case err != nil:
		return nil, unavailable(err)
	case data != nil:
		if err := a.reconcile(data); err != nil {
			a.own.stamp = pemfile.Stamp{} // the next call reads the file again
			return nil, err
		}
	case !a.own.current:
		a.unsynced = true
	}
	for _, f := range a.copies {
		wasCurrent := f.current
		data, err := f.differs(a.crl.Load().pem, thorough)
		if err != nil && wasCurrent {
			a.opts.Log.WithError(err).Warn("another program removed the published CRL; espm writes it again")
		}
		if err != nil || data == nil {
			continue // publish writes it, and reports errors
		}
		a.opts.Log.WithField("path", f.path).Warn("another program changed the published CRL; espm writes it again")
		theirs, err := parseCRLs(data, a.chain)
		if err != nil {
			continue
		}
		// The foreign CRLs of copies are ignored: ca_crl.pem has the valid ones.
		if err := a.mergeEntries(f, theirs.own()); err != nil {
			f.stamp = pemfile.Stamp{} // the next call reads the file again
			return nil, err
		}
	}
	return a.crl.Load(), nil
}

// reconcile merges a ca_crl.pem that another program wrote.
func (a *crlKeeper) reconcile(data []byte) error {
	current := a.crl.Load()
	if bytes.Equal(data, current.pem) {
		return nil
	}
	theirs, err := parseCRLs(data, a.chain)
	if err != nil {
		if changed := a.checkSameCA(); changed != nil {
			return unavailable(changed)
		}
		a.opts.Log.WithError(err).WithField("path", a.own.path).Warn("another program wrote an unusable CRL; espm writes its own again")
		a.unsynced = true
		return nil
	}
	a.warnOfBad(theirs.foreign, "espm keeps the one before")
	foreign := current.foreign
	theirs.foreign = latest(theirs.foreign, current.foreign)
	same := slices.EqualFunc(theirs.foreign, foreign, func(x, y foreignCRL) bool { return bytes.Equal(x.pem, y.pem) })
	if !same {
		a.opts.Log.WithField("path", a.own.path).Info("other issuers' CRLs were renewed")
		current = current.withForeign(theirs.foreign)
		a.crl.Store(current)
		for _, f := range a.copies {
			f.current = false
		}
	}
	if bytes.Equal(data, current.pem) {
		a.own.current = true
		return nil
	}
	a.opts.Log.WithFields(logrus.Fields{"path": a.own.path, "number": theirs.number, "want": current.number}).
		Warn("another program changed the CRL; espm writes it again")
	a.unsynced = true
	return a.mergeEntries(a.own, theirs.own())
}

// checkSameCA returns an error if ca_crt.pem has another CA than at the start. Then espm must not
// overwrite the CRL, which is the other CA's.
func (a *folder) checkSameCA() error {
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

// mergeEntries merges CRLs of this CA that another program made. If they have entries that a.crl lacks,
// or a higher number, it writes a new CRL with all entries and a number above all.
func (a *crlKeeper) mergeEntries(f *crlFile, theirs []*crlChain) error {
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
	next, err := a.nextCRL(following(number), list, current.foreign, a.opts.Now())
	if err != nil {
		return err
	}
	a.opts.Log.WithFields(logrus.Fields{"path": f.path, "entries": len(added), "crl_number": next.number}).
		Warn("another program revoked certificates; a new CRL has their entries too")
	return a.writeOwn(next, delta{added: added})
}

// mergeFound merges, at the start, all CRLs of this CA: those in
// ca_crl.pem and those in the copies. A copy that is current or unreadable is nil.
func (a *crlKeeper) mergeFound(own *crlContents, copies []*crlContents) error {
	if err := a.mergeEntries(a.own, own.more); err != nil {
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
		if err := a.mergeEntries(a.copies[i], theirs); err != nil {
			return err
		}
	}
	if a.own.current {
		return nil
	}
	return a.writeOwn(a.crl.Load(), delta{})
}

// withoutPruned returns c without the entries that were removed from a.crl after their certificates
// ended. A copy that could not be written still has them.
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
	missing := func(key serialKey) bool { _, ok := ends[key]; return ok }
	err := a.inventory.ends(context.Background(), missing, func(key serialKey, e end) {
		ends[key] = max(ends[key], e) // the later one, should a serial stand there twice
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
	pruned := *c
	pruned.entryList = c.without(gone)
	return &pruned, nil
}

// latest returns theirs. A CRL of theirs is replaced by one of ours if both have the same issuer and ours
// is later, or theirs has a bad signature.
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

// warnOfBad logs the CRLs of other issuers that have a bad signature.
func (a *crlKeeper) warnOfBad(foreign []foreignCRL, what string) {
	for _, f := range foreign {
		if f.bad != nil {
			a.opts.Log.WithError(f.bad).WithFields(logrus.Fields{"issuer": f.issuer, "path": a.own.path}).
				Warn("the CRL of another issuer has a bad signature; " + what)
		}
	}
}
