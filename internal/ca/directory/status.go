package directory

import (
	"context"

	"github.com/espm-project/espm/internal/ca"
)

// Status tells from memory how things stood when they were last looked at,
// which is at most a minute ago where Run runs.
func (a *Authority) Status(context.Context) (ca.Status, error) {
	c := a.crl.Load()
	s := ca.Status{
		Subject:  a.chain[0].Subject.String(),
		NotAfter: a.chain[0].NotAfter,
		CRL: ca.CRLStatus{
			Issuer: a.chain[0].Subject.String(), Number: c.number.String(), Entries: c.count,
			ThisUpdate: c.thisUpdate, NextUpdate: c.nextUpdate,
		},
		Bytes: len(c.pem),
	}
	for _, f := range c.foreign {
		foreign := ca.CRLStatus{Issuer: f.issuer, Entries: f.entries, ThisUpdate: f.thisUpdate, NextUpdate: f.nextUpdate}
		if f.number != nil {
			foreign.Number = f.number.String()
		}
		s.Foreign = append(s.Foreign, foreign)
	}
	s.Files = append(s.Files, a.own.status())
	for _, f := range a.copies {
		s.Files = append(s.Files, f.status())
	}
	return s, nil
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
