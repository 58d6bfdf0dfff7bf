package puppetserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

// Status returns the state of the server's certificate and CRLs, at most as old as those of
// Trust. Files is empty, as espm does not know the server's files. Errors wrap node.ErrUnavailable.
func (a *server) Status(ctx context.Context) (ca.Status, error) {
	s, own, err := a.brief(ctx)
	if err != nil {
		return ca.Status{}, err
	}
	now := a.opts.Now()
	for e := range own.Entries.All() {
		if when, ok := e.Time(); ok && now.Sub(when) < ca.Recently {
			s.CRL.Recent++
		}
	}
	s.CRL.EntryBytes = ca.PEMBytes(len(own.Entries))
	return s, nil
}

// Brief is Status without CRL.Recent and CRL.EntryBytes, which read each entry. Changed CRLs are parsed once.
func (a *server) Brief(ctx context.Context) (ca.Status, error) {
	s, _, err := a.brief(ctx)
	return s, err
}

func (a *server) brief(ctx context.Context) (ca.Status, *pemfile.RevocationList, error) {
	t, err := a.trusted(ctx, crlAge)
	if err != nil {
		return ca.Status{}, nil, fmt.Errorf("the CA's certificates and CRL: %w", err)
	}
	c, err := t.crls()
	if err = errors.Join(err, c.foreignErr); err != nil {
		return ca.Status{}, nil, fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	}
	return ca.Status{
		Subject: t.issuer.Subject.String(), NotBefore: t.issuer.NotBefore, NotAfter: t.issuer.NotAfter,
		CRL: statusOf(c.own), Foreign: slices.Clone(c.foreign), Bytes: len(t.CRLsPEM),
	}, c.own, nil
}

func statusOf(crl *pemfile.RevocationList) ca.CRLStatus {
	s := ca.CRLStatus{
		Issuer: crl.Issuer(), Entries: crl.Entries.Count(), ThisUpdate: crl.ThisUpdate, NextUpdate: crl.NextUpdate,
	}
	if crl.Number != nil {
		s.Number = crl.Number.String()
	}
	return s
}
