package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

// Revoke writes one CRL for all targets, publishes it, and removes the
// revoked certificates from signed/. A target may have no certname. If all targets are revoked
// already, Revoke signs no CRL, but still writes copies that
// are missing or differ. If the file of a target in signed/ can't be
// read or removed, only this target is refused (*ca.RefusedError). If that is so for all targets,
// the error wraps node.ErrUnavailable.
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
	refused, err := a.discard(targets)
	if err != nil {
		return nil, fmt.Errorf("revoke %s: %w", describe(targets), err)
	}
	files := append([]string{a.file("ca_crl.pem")}, a.opts.Publish...)
	receipts := make([]node.Receipt, len(targets))
	for i, t := range targets {
		if refused == nil || refused.Targets[i] == nil {
			receipts[i] = node.Receipt{Serial: t.Serial, CRLNumber: current.number.String(), PublishedAt: published, PublishedTo: files}
		}
	}
	if refused != nil {
		return receipts, refused
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

// list makes the CRL on the disk and its copies list the targets.
func (a *crlKeeper) list(targets []ca.Target) (*crlChain, error) {
	current, err := a.checkFiles(false)
	if err != nil {
		return nil, err
	}
	next, added, err := a.adding(current, targets)
	if err != nil {
		return nil, err
	}
	if len(added) > 0 || a.unsynced {
		if err := a.writeOwn(next, delta{added: added}); err != nil {
			return nil, err
		}
	}
	return next, a.publish(next)
}

// adding returns a chain that lists the targets, and the serials that current does not list.
func (a *crlKeeper) adding(current *crlChain, targets []ca.Target) (*crlChain, []serialKey, error) {
	now := a.opts.Now()
	list := current.entryList
	var added []serialKey
	seen := make(map[serialKey]bool, len(targets))
	for _, t := range targets {
		key, _ := keyOfSerial(t.Serial)
		if seen[key] || a.listed.has(key) {
			continue
		}
		if err := list.revoke(t, issueTime(now)); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", t.Certname, err)
		}
		seen[key] = true
		added = append(added, key)
	}
	if len(added) == 0 {
		return current, nil, nil
	}
	next, err := a.nextCRL(following(current.number), list, current.foreign, now)
	return next, added, err
}

// discard removes revoked certificates from signed/, but not their successors,
// and stores when they end. It refuses the targets whose file can't be read or removed.
func (a *Authority) discard(targets []ca.Target) (refused *ca.RefusedError, err error) {
	var names []node.Certname
	for _, t := range targets {
		if t.Certname != "" {
			names = append(names, t.Certname)
		}
	}
	defer a.names.lock(names...)()
	failed := make([]error, len(targets))
	files := make([]string, len(targets)) // their paths
	var paths []string
	for i, t := range targets {
		if files[i], failed[i] = a.fileOf(t); files[i] != "" && !slices.Contains(paths, files[i]) {
			paths = append(paths, files[i])
		}
	}
	if len(paths) > 0 {
		err := a.opts.Disk.Remove(paths...)
		each, told := errors.AsType[*durable.RemoveError](err)
		if err != nil && !told {
			return nil, unavailable(err)
		}
		for i := range targets {
			if told && files[i] != "" {
				failed[i] = each.Paths[files[i]]
			}
		}
	}
	whole := errors.Join(failed...)
	if whole == nil {
		return nil, nil
	}
	if !slices.Contains(failed, nil) {
		return nil, unavailable(whole)
	}
	for i, t := range targets {
		if failed[i] != nil {
			failed[i] = fmt.Errorf("serial %s of %q is on the CRL, but its file can't be removed: %w", t.Serial, t.Certname, failed[i])
		}
	}
	return &ca.RefusedError{Targets: failed}, nil
}

// fileOf returns the file in signed/ that has the target, "" if there is none.
func (a *Authority) fileOf(t ca.Target) (string, error) {
	if t.Certname == "" {
		return "", nil
	}
	cert, err := a.readCertificate(t.Certname)
	if errors.Is(err, node.ErrForeignCertificate) {
		return "", nil // it is not that certificate
	}
	if err != nil || cert == nil || node.SerialOf(cert.SerialNumber) != t.Serial {
		return "", err
	}
	if key, ok := pemfile.KeyOf(cert.SerialNumber); ok && !cert.NotAfter.IsZero() {
		a.listed.setEnd(key, endOf(cert.NotAfter))
	}
	return a.signed(t.Certname), nil
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
