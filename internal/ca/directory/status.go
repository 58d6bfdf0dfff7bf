package directory

import (
	"context"
	"time"

	"github.com/espm-project/espm/internal/ca"
)

// Status returns the state in memory. While Run runs, it is at most a minute old.
func (a *Authority) Status(context.Context) (ca.Status, error) {
	c := a.crl.Load()
	s := a.brief(c)
	s.CRL.Recent = c.recent(a.opts.Now())
	return s, nil
}

// Brief is Status without CRL.Recent, for which Status reads each entry.
func (a *Authority) Brief(context.Context) (ca.Status, error) { return a.brief(a.crl.Load()), nil }

func (a *crlKeeper) brief(c *crlChain) ca.Status {
	s := ca.Status{
		Subject:   a.issuer.Subject.String(),
		NotBefore: a.issuer.NotBefore, NotAfter: a.issuer.NotAfter,
		CRL: ca.CRLStatus{
			Issuer: a.issuer.Subject.String(), Number: c.number.String(), Entries: c.count, EntryBytes: ca.PEMBytes(len(c.entries)),
			ThisUpdate: c.thisUpdate, NextUpdate: c.nextUpdate,
		},
		Bytes: len(c.pem),
	}
	for _, f := range c.foreign {
		foreign := ca.CRLStatus{Issuer: f.issuer, Entries: f.entries, ThisUpdate: f.thisUpdate, NextUpdate: f.nextUpdate, Outside: f.outside}
		if f.number != nil {
			foreign.Number = f.number.String()
		}
		s.Foreign = append(s.Foreign, foreign)
	}
	s.Files = append(s.Files, a.own.status())
	for _, f := range a.copies {
		s.Files = append(s.Files, f.status())
	}
	return s
}

// recent counts the entries that are not older than ca.Recently.
func (c *crlChain) recent(now time.Time) (n int) {
	for e := range c.entries.All() {
		if when, ok := e.Time(); ok && now.Sub(when) < ca.Recently {
			n++
		}
	}
	return n
}

func (f *crlFile) status() ca.CRLFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := ca.CRLFile{Path: f.path, Since: f.since}
	if f.err != nil {
		s.Error = f.err.Error()
	}
	return s
}
