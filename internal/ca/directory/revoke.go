package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Revoke writes one CRL for all targets, publishes it, and removes the
// revoked certificates from signed/. A target without a certname is revoked
// by its serial alone. Where all are revoked already no CRL is signed; copies that
// are missing or differ are written nevertheless.
func (a *Authority) Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	for _, t := range targets {
		if err := checkTarget(t); err != nil {
			return nil, err
		}
	}
	a.revoking.Lock()
	defer a.revoking.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("revoke %s: %w", describe(targets), err)
	}
	current, err := a.list(targets)
	if err != nil {
		return nil, fmt.Errorf("revoke %s: %w", describe(targets), err)
	}
	published := a.opts.Now().UTC()
	if err := a.discard(targets); err != nil {
		return nil, fmt.Errorf("revoke %s: %w", describe(targets), err)
	}
	files := append([]string{a.file("ca_crl.pem")}, a.opts.Publish...)
	receipts := make([]node.Receipt, len(targets))
	for i, t := range targets {
		receipts[i] = node.Receipt{Serial: t.Serial, CRLNumber: current.number.String(), PublishedAt: published, PublishedTo: files}
	}
	return receipts, nil
}

func checkTarget(t ca.Target) error {
	if _, ok := keyOfSerial(t.Serial); !ok {
		return fmt.Errorf("revoke %s: %q is no serial number", t.Certname, t.Serial)
	}
	if _, err := node.ParseCertname(string(t.Certname)); err != nil && t.Certname != "" {
		return fmt.Errorf("revoke serial %s: %w", t.Serial, err)
	}
	if _, err := node.ParseReason(string(t.Reason)); err != nil {
		return fmt.Errorf("revoke serial %s: %w", t.Serial, err)
	}
	return nil
}

// list sees to it that the CRL on the disk and its copies list the targets.
func (a *Authority) list(targets []ca.Target) (*crlChain, error) {
	current, err := a.look(false)
	if err != nil {
		return nil, err
	}
	next, added, err := a.with(current, targets)
	if err != nil {
		return nil, err
	}
	if len(added) > 0 || a.unsynced {
		if err := a.put(next, delta{added: added}); err != nil {
			return nil, err
		}
	}
	return next, a.publish(next)
}

// with returns a chain that lists the targets, and what it has more than current.
func (a *Authority) with(current *crlChain, targets []ca.Target) (*crlChain, []serialKey, error) {
	now := a.opts.Now()
	entries := current.entries
	var added []serialKey
	seen := make(map[serialKey]bool, len(targets))
	for _, t := range targets {
		key, _ := keyOfSerial(t.Serial)
		if seen[key] || a.listed.has(key) {
			continue
		}
		var err error
		if entries, err = appendEntry(entries, t, now); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", t.Certname, err)
		}
		seen[key] = true
		added = append(added, key)
	}
	if len(added) == 0 {
		return current, nil, nil
	}
	next, err := a.signer.next(following(current.number), entries, current.count+len(added), current.foreign, now, a.opts.CRLValidity)
	return next, added, err
}

// discard removes revoked certificates from signed/, but not a successor's,
// and learns when they end.
func (a *Authority) discard(targets []ca.Target) error {
	var names []node.Certname
	for _, t := range targets {
		if t.Certname != "" { // else it is known by its serial alone
			names = append(names, t.Certname)
		}
	}
	defer a.names.lock(names...)()
	var paths []string
	var errs []error
	for _, t := range targets {
		if t.Certname == "" {
			continue
		}
		cert, err := a.readSigned(t.Certname)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if cert == nil || node.SerialOf(cert.SerialNumber) != t.Serial {
			continue
		}
		if key, ok := keyOf(cert.SerialNumber); ok {
			a.listed.setEnd(key, endOf(cert.NotAfter))
		}
		if path := a.signed(t.Certname); !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	if len(paths) > 0 {
		errs = append(errs, unavailable(a.opts.Disk.Remove(paths...)))
	}
	return errors.Join(errs...)
}

func describe(targets []ca.Target) string {
	switch len(targets) {
	case 0:
		return "nothing"
	case 1:
		return fmt.Sprintf("%s (serial %s)", targets[0].Certname, targets[0].Serial)
	}
	return fmt.Sprintf("%s (serial %s) and %d more", targets[0].Certname, targets[0].Serial, len(targets)-1)
}
