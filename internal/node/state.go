package node

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// The transitions of a registration. No other code sets State, or the serials of the live certificates.
// docs/durability.md has the diagram.
//
// Each method leaves its receiver as it is and returns a changed copy, or an
// error where the state forbids the transition. Nothing is stored.
//
// A registration has one or more certificates while it is Provisioned. A tombstone has the serials that the
// registration had at its end.

// errNotIssuing is a fault of espm: an intent is open only while its registration is Issuing. So it is no sentinel.
var errNotIssuing = errors.New("no certificate is being issued")

// Register returns a new registration in the state Registered. It copies from spec only the fields that a caller sets.
func Register(spec Node, uid UID, owner string, at time.Time) Node {
	at = at.UTC()
	n := Node{
		Certname:       spec.Certname,
		UID:            uid,
		State:          Registered,
		Owner:          owner,
		Classification: spec.Classification,
		Groups:         spec.Groups,
		Labels:         spec.Labels,
		ClaimWithin:    spec.ClaimWithin,
		CreatedAt:      at,
		UpdatedAt:      at,
	}.Clone()
	slices.Sort(n.Groups)
	if n.ClaimWithin > 0 {
		n.ClaimBy = at.Add(n.ClaimWithin).Round(time.Second)
	}
	return n
}

// BeginIssue opens the issue of a certificate: Registered to Issuing. Errors:
// ErrCertificateExists, ErrIssuing, ErrNodeNotFound (terminated).
func (n Node) BeginIssue(at time.Time) (Node, error) {
	if err := n.withoutCertificate(); err != nil {
		return n, err
	}
	return n.moved(Issuing, nil, at), nil
}

// CancelIssue ends an issue that gave the registration no certificate: Issuing
// to Registered. An error means that no issue was open.
func (n Node) CancelIssue(at time.Time) (Node, error) {
	if n.State != Issuing {
		return n, n.notIssuing()
	}
	return n.moved(Registered, nil, at), nil
}

// Hold ends an issue with its certificate: Issuing to
// Provisioned. An error means that no issue was open.
func (n Node) Hold(serial Serial, at time.Time) (Node, error) {
	if n.State != Issuing {
		return n, n.notIssuing()
	}
	return n.moved(Provisioned, []Serial{serial}, at), nil
}

// Adopt adds certificates that were issued earlier: Registered or Provisioned to Provisioned. certs are all
// certificates after the transition, including those that the registration has already. Errors: ErrIssuing,
// ErrNodeNotFound (terminated), ErrCertificateNotFound if one that it has already is missing.
func (n Node) Adopt(certs []Certificate, at time.Time) (Node, error) {
	if err := n.settled(); err != nil {
		return n, err
	}
	serials := newestFirst(certs)
	for _, held := range n.Serials {
		if !slices.Contains(serials, held) {
			return n, fmt.Errorf("%w: registration %s of %q holds %s as well", ErrCertificateNotFound, n.UID, n.Certname, held)
		}
	}
	return n.moved(Provisioned, serials, at), nil
}

// newestFirst returns the serials of certificates, the newest first. It does not change the order of two that begin at
// the same time.
func newestFirst(certs []Certificate) []Serial {
	certs = slices.Clone(certs)
	slices.SortStableFunc(certs, func(a, b Certificate) int { return b.NotBefore.Compare(a.NotBefore) })
	serials := make([]Serial, len(certs))
	for i, c := range certs {
		serials[i] = c.Serial
	}
	return serials
}

// Lose removes a certificate whose revocation is ordered: Provisioned to Registered, or still Provisioned if the
// registration has another certificate. Restore is the inverse. Error: ErrCertificateNotFound if the registration does
// not have the serial.
func (n Node) Lose(serial Serial, at time.Time) (Node, error) {
	if n.State != Provisioned || !n.Holds(serial) {
		return n, fmt.Errorf("%w: registration %s of %q is %s and does not hold %s", ErrCertificateNotFound, n.UID, n.Certname, n.State, serial)
	}
	var left []Serial
	for _, s := range n.Serials {
		if s != serial {
			left = append(left, s)
		}
	}
	if left == nil {
		return n.moved(Registered, nil, at), nil
	}
	return n.moved(Provisioned, left, at), nil
}

// LoseAll removes all certificates that the registration has; it may have none.
func (n Node) LoseAll(at time.Time) (Node, error) {
	var err error
	for _, serial := range slices.Clone(n.Serials) {
		if n, err = n.Lose(serial, at); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Restore adds a certificate whose revocation was dropped: Registered or Provisioned to Provisioned. held are the
// certificates that the registration has. Errors: ErrUIDMismatch if the certificate is of another registration,
// ErrCertificateNotFound if it has expired, and those of Adopt.
func (n Node) Restore(cert Certificate, held []Certificate, at time.Time) (Node, error) {
	switch {
	case n.UID != cert.UID:
		return n, fmt.Errorf("%w: %s is of registration %s, and %q is %s now", ErrUIDMismatch, cert.Serial, cert.UID, n.Certname, n.UID)
	case at.After(cert.NotAfter):
		return n, fmt.Errorf("%w: %s of %q expired at %s", ErrCertificateNotFound, cert.Serial, n.Certname, cert.NotAfter.Format(time.RFC3339))
	}
	return n.Adopt(append(slices.Clone(held), cert), at)
}

// Terminate returns the tombstone of a live registration, without its sensitive values. reason is that of the
// revocations. why says why espm terminates the node without a call; it is empty if a caller does. Error:
// ErrNodeNotFound.
func (n Node) Terminate(reason Reason, why string, at time.Time) (Node, error) {
	if n.State == Terminated {
		return n, n.terminated()
	}
	t := n.moved(Terminated, n.Serials, at)
	t.Classification = n.Classification.Redacted()
	t.TerminatedAt, t.RevokedFor, t.TerminatedFor = t.UpdatedAt, reason, why
	return t, nil
}

// Forget is Terminate for a registration whose certificates are given up: they stay valid. Errors: ErrIssuing,
// ErrNodeNotFound (terminated).
func (n Node) Forget(at time.Time) (Node, error) {
	if err := n.settled(); err != nil {
		return n, err
	}
	return n.Terminate("", "forgotten by request; its certificates were not revoked", at)
}

func (n Node) moved(to State, serials []Serial, at time.Time) Node {
	n = n.Clone()
	n.State, n.Serials, n.UpdatedAt = to, slices.Clone(serials), at.UTC()
	return n
}

// withoutCertificate returns an error unless the registration is Registered.
func (n Node) withoutCertificate() error {
	if n.State == Provisioned {
		return fmt.Errorf("%w: %q holds %s", ErrCertificateExists, n.Certname, n.Newest())
	}
	return n.settled()
}

// settled returns an error if the registration is terminated, or has an open issue.
func (n Node) settled() error {
	switch n.State {
	case Issuing:
		return fmt.Errorf("%w: for %q", ErrIssuing, n.Certname)
	case Terminated:
		return n.terminated()
	}
	return nil
}

func (n Node) terminated() error {
	return fmt.Errorf("%w: registration %s of %q is terminated", ErrNodeNotFound, n.UID, n.Certname)
}

func (n Node) notIssuing() error {
	return fmt.Errorf("%w: registration %s of %q is %s", errNotIssuing, n.UID, n.Certname, n.State)
}
