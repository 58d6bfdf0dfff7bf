package directory

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/sirupsen/logrus"
)

// look returns the chain that ca_crl.pem is to hold, after what others made of it
// and of its copies. Nobody should write there; who does, such as
// `puppetserver ca` by hand, must not bring a revoked certificate to life:
//   - what was revoked elsewhere with the CA's key is kept, in a CRL with a
//     number above both;
//   - an older or unreadable file is replaced;
//   - the other issuers' CRLs are taken as they are: whoever holds their keys
//     renews them there.
//
// Unless thorough, files that look untouched are not read.
func (a *Authority) look(thorough bool) (*crlChain, error) {
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
			a.own.seen = fileID{} // it is not settled: read it again
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
		theirs, listed, err := parseCRLs(data, a.chain)
		if err != nil {
			continue
		}
		theirs.foreign = nil // those of ca_crl.pem count
		if err := a.absorb(f, theirs, listed); err != nil {
			f.seen = fileID{} // it is not settled: read it again
			return nil, err
		}
	}
	return a.crl.Load(), nil
}

// reconcile settles what to do about a ca_crl.pem that somebody wrote.
func (a *Authority) reconcile(data []byte) error {
	current := a.crl.Load()
	if bytes.Equal(data, current.pem) {
		return nil
	}
	theirs, listed, err := parseCRLs(data, a.chain)
	if err != nil {
		if changed := a.replaced(); changed != nil {
			return unavailable(changed)
		}
		a.opts.Log.WithError(err).WithField("path", a.own.path).Warn("the CRL was changed by somebody, to something useless; it is written again")
		a.unsynced = true
		return nil
	}
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
	return a.absorb(a.own, theirs, listed)
}

// replaced tells whether the CA itself was exchanged under a running espm,
// whose CRL must not take the place of the new one's.
func (a *Authority) replaced() error {
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

// absorb keeps what a CRL of ours that somebody else made lists and a.crl does
// not, or has a later number.
func (a *Authority) absorb(f *crlFile, theirs *crlChain, listed []serialKey) error {
	current := a.crl.Load()
	entries := current.entries
	var added []serialKey
	seen := make(map[serialKey]bool)
	err := eachEntry(theirs.entries, func(der []byte, key serialKey, ok bool) {
		if ok && !seen[key] && !a.listed.has(key) {
			seen[key] = true
			added = append(added, key)
			entries = append(entries, der...)
		}
	})
	if err != nil {
		return err
	}
	later := theirs.number.Cmp(current.number) > 0
	if len(added) == 0 && !later {
		return nil
	}
	number := current.number
	if later {
		number = theirs.number
	}
	next, err := a.signer.next(following(number), entries, current.count+len(added), current.foreign, a.opts.Now(), a.opts.CRLValidity)
	if err != nil {
		return err
	}
	a.opts.Log.WithFields(logrus.Fields{"path": f.path, "entries": len(added), "crl_number": next.number}).
		Warn("certificates were revoked by somebody else; their entries are kept, in a new CRL")
	return a.put(next, delta{added: added})
}

// latest returns the CRLs of theirs, and where ours has a later one of the same issuer, that.
func latest(theirs, ours []foreignCRL) []foreignCRL {
	out := slices.Clone(theirs)
	for i := range out {
		for _, f := range ours {
			if f.rawIssuer == out[i].rawIssuer && f.thisUpdate.After(out[i].thisUpdate) {
				out[i] = f
			}
		}
	}
	return out
}
