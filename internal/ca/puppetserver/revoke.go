package puppetserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Revoke revokes through /clean, in batches. Then it fetches the CRL, and returns a receipt for each
// target that the CRL lists. It does not revoke a name that has a newer certificate. If the server can't revoke
// a name, Revoke still revokes the others. The error has the targets of both kinds. If
// the server can't revoke now, the error wraps node.ErrUnavailable.
//
// Only one call revokes at a time: /clean of 7.9 does not lock the CRL, so with two calls at once
// one entry could be lost. Another client of the server can still cause that, if it reads the CRL before our call
// and writes it after.
func (a *revoker) Revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	for _, t := range targets {
		if _, ok := t.Serial.Int(); !ok {
			return nil, fmt.Errorf("revoke %s: %q is no serial number", t.Certname, t.Serial)
		}
		if _, err := node.ParseCertname(string(t.Certname)); err != nil {
			return nil, fmt.Errorf("revoke serial %s: %w", t.Serial, err)
		}
	}
	if len(targets) == 0 {
		return nil, ctx.Err()
	}
	if err := a.begin(ctx); err != nil {
		return nil, err
	}
	defer a.end()
	receipts, err := a.revoke(ctx, targets)
	if err != nil {
		return receipts, fmt.Errorf("revoke %d certificates: %w", len(targets), err)
	}
	return receipts, nil
}

// begin waits until no other call revokes. end must follow.
func (a *revoker) begin(ctx context.Context) error {
	if ctx.Err() != nil {
		return unreachable(ctx, ctx.Err())
	}
	select {
	case <-a.revoking:
		return nil
	case <-ctx.Done():
		return unreachable(ctx, errors.New("another revocation is still running"))
	}
}

func (a *revoker) end() { a.revoking <- struct{}{} }

func (a *revoker) revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	if err := a.waitQuiet(ctx); err != nil {
		return nil, err
	}
	r := &revocation{a: a, failed: map[node.Certname]error{}, current: map[node.Certname]node.Serial{}}
	if err := r.plan(ctx, targets); err != nil {
		return nil, err
	}
	stopped := r.clean(ctx)
	receipts, complete, err := a.receipts(ctx, targets)
	if err != nil {
		return nil, errors.Join(stopped, err)
	}
	withdrawn, err := r.withdraw(ctx, targets, receipts, stopped != nil)
	if err != nil {
		return nil, errors.Join(stopped, err)
	}
	if complete && withdrawn == 0 {
		return receipts, nil // a lost answer does not matter then
	}
	if stopped != nil {
		return receipts, stopped
	}
	byFile := a.revokesByFile(ctx)
	refused := &ca.RefusedError{Targets: make([]error, len(targets))}
	for i, t := range targets {
		if receipts[i].Serial != "" {
			continue
		}
		why := r.failed[t.Certname]
		if current := r.current[t.Certname]; why == nil && byFile && current != t.Serial {
			refused.Targets[i] = impossible(t, current)
			continue
		}
		if why == nil {
			why = errors.New("the CRL does not list it, although the server reported no error: the certificate was deleted " +
				"without being revoked, or ca.conf has enable-infra-crl, so that the server does not return its full CRL")
		}
		a.failedBefore[t.Serial] = true
		refused.Targets[i] = fmt.Errorf("serial %s of %q: %w", t.Serial, t.Certname, why)
	}
	return receipts, refused
}

// withdraw removes the receipts of revoked certificates that the server
// still has in signed/. The server stopped or failed between writing the CRL and deleting them. With a receipt,
// no call would clean them again, and they would block their names. withdraw returns how many there are.
func (r *revocation) withdraw(ctx context.Context, targets []ca.Target, receipts []node.Receipt, stopped bool) (withdrawn int, err error) {
	var names []node.Certname
	for _, t := range targets {
		if stopped || r.failed[t.Certname] != nil {
			names = append(names, t.Certname)
		}
	}
	if len(names) == 0 {
		return 0, nil
	}
	current, _, err := r.a.currentSerials(ctx, names)
	if err != nil {
		return 0, err
	}
	still := map[ca.Target]bool{}
	for i, name := range names {
		still[ca.Target{Certname: name, Serial: current[i]}] = true
	}
	for i, t := range targets {
		if receipts[i].Serial != "" && still[ca.Target{Certname: t.Certname, Serial: t.Serial}] {
			receipts[i] = node.Receipt{}
			withdrawn++
		}
	}
	return withdrawn, nil
}

// receipts returns the receipts of the targets that the CRL lists now, in
// order. complete: the CRL lists all.
func (a *revoker) receipts(ctx context.Context, targets []ca.Target) (receipts []node.Receipt, complete bool, err error) {
	serials := make([]node.Serial, len(targets))
	for i, t := range targets {
		serials[i] = t.Serial
	}
	number, listed, err := a.listed(ctx, serials...)
	if err != nil {
		return nil, false, err
	}
	a.crlStale = !a.lostAt.IsZero()
	receipts, complete = make([]node.Receipt, len(targets)), true
	url := a.base.JoinPath(apiPath, "certificate_revocation_list/ca").String()
	for i, t := range targets {
		if !listed[t.Serial] {
			complete = false
			continue
		}
		receipts[i] = node.Receipt{Serial: t.Serial, CRLNumber: number, PublishedAt: a.opts.Now().UTC(), PublishedTo: []string{url}}
		delete(a.failedBefore, t.Serial)
	}
	return receipts, complete, nil
}

// waitQuiet waits until the server has finished a revocation whose answer was lost. Until then, that could
// remove a newer certificate of the name.
func (a *revoker) waitQuiet(ctx context.Context) error {
	for {
		left := a.busyFor(ctx)
		if left == 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(min(left, askAgain))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return unreachable(ctx, errors.New("waiting for a revocation whose answer was lost"))
		}
	}
}

// busyFor returns how much longer the server may work on a revocation whose answer was lost.
func (a *revoker) busyFor(ctx context.Context) time.Duration {
	if a.lostAt.IsZero() {
		return 0
	}
	left := max(a.quietTime(ctx)-time.Since(a.lostAt), 0)
	if left == 0 {
		a.lostAt = time.Time{}
	}
	return left
}

const (
	unlockedQuiet = 10 * time.Second // 7.x: /clean takes no lock
	lockedQuiet   = 65 * time.Second // later: it waits up to 60 s for the CRL's lock, and then searches the serials
	askAgain      = 5 * time.Second  // how often to ask for an unknown version
)

// quietTime returns how long the server can work on a revocation after its answer was lost.
func (a *revoker) quietTime(ctx context.Context) time.Duration {
	if a.opts.Quiet != 0 {
		return a.opts.Quiet
	}
	if a.running.Load() == nil {
		_, _ = a.version(ctx) // after an error, the longest wait applies
	}
	quiet := lockedQuiet
	if version := a.running.Load(); version != nil && strings.HasPrefix(*version, "7.") {
		quiet = unlockedQuiet
	}
	return max(quiet, 2*a.longest)
}

// revocation is one call of Revoke.
type revocation struct {
	a          *revoker
	names      []node.Certname // to clean together
	alone      []node.Certname // to clean one by one, as they have failed before
	failed     map[node.Certname]error
	current    map[node.Certname]node.Serial // the serial in signed/ before the clean; "": none
	cleanedAny bool                          // the server cleaned something
	oneByOne   bool                          // the server has no /clean
}

// plan fetches the certificate of each name and decides which names to clean: names whose
// certificate is a target, and names without a certificate whose target is
// not on the CRL. For the latter, 8.2.2 and later revoke by their inventory.
func (r *revocation) plan(ctx context.Context, targets []ca.Target) error {
	serials := map[node.Certname][]node.Serial{}
	var names []node.Certname
	var all []node.Serial
	for _, t := range targets {
		if serials[t.Certname] == nil {
			names = append(names, t.Certname)
		}
		serials[t.Certname] = append(serials[t.Certname], t.Serial)
		all = append(all, t.Serial)
	}
	_, listed, err := r.a.listed(ctx, all...)
	if err != nil {
		return err
	}
	r.a.crlStale = false
	current, unreadable, err := r.a.currentSerials(ctx, names)
	if err != nil {
		return err
	}
	for i, name := range names {
		r.current[name] = current[i]
		open := slices.ContainsFunc(serials[name], func(s node.Serial) bool { return !listed[s] })
		ours := slices.Contains(serials[name], current[i])
		switch {
		case unreadable[i] != nil:
			r.failed[name] = unreadable[i]
		case !ours && !open:
		case !ours && current[i] != "":
			r.failed[name] = fmt.Errorf("%w: serial %s, which a revocation by name would reach", node.ErrForeignCertificate, current[i])
		case slices.ContainsFunc(serials[name], func(s node.Serial) bool { return r.a.failedBefore[s] }):
			r.alone = append(r.alone, name)
		default:
			r.names = append(r.names, name)
		}
	}
	return nil
}

// currentSerials returns the serial in signed/NAME.pem of each name, "" if there is no file. The second slice has
// the error of each file that is no certificate.
func (a *revoker) currentSerials(ctx context.Context, names []node.Certname) ([]node.Serial, []error, error) {
	out, unreadable := make([]node.Serial, len(names)), make([]error, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(len(names), a.opts.Concurrency) {
		wg.Go(func() {
			for i := range next {
				cert, err := a.certificate(ctx, names[i])
				switch {
				case errors.Is(err, node.ErrForeignCertificate):
					unreadable[i] = err
				case err != nil:
					errs[i] = err
				case cert != nil:
					out[i] = node.SerialOf(cert.SerialNumber)
				}
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	wg.Wait()
	// One error is enough: if the server is down, all are the same.
	return out, unreadable, errs[max(0, slices.IndexFunc(errs, func(err error) bool { return err != nil }))]
}
