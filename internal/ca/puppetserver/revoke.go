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

// Revoke revokes through /clean, in batches, and gives a receipt for what the
// CRL lists that it fetches afterwards. A name that has another certificate by
// now is not touched, and one that the server can't revoke holds up no other: both are in the
// error, beside the receipts of the rest. It errs with node.ErrUnavailable where
// the server can't act now.
//
// One call revokes at a time: /clean of 7.9 takes no lock, and two at once
// lose what one of them wrote. Another client of the server can still do that
// to us between its reading and its writing of the CRL, for as long as that takes it.
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

// begin waits until nobody revokes; end lets others do so.
func (a *revoker) begin(ctx context.Context) error {
	if ctx.Err() != nil {
		return unreachable(ctx, ctx.Err())
	}
	select {
	case <-a.revoking:
		return nil
	case <-ctx.Done():
		return unreachable(ctx, errors.New("another revocation is under way"))
	}
}

func (a *revoker) end() { a.revoking <- struct{}{} }

func (a *revoker) revoke(ctx context.Context, targets []ca.Target) ([]node.Receipt, error) {
	if err := a.quiet(ctx); err != nil {
		return nil, err
	}
	r := &revocation{a: a, failed: map[node.Certname]error{}, stood: map[node.Certname]node.Serial{}}
	if err := r.plan(ctx, targets); err != nil {
		return nil, err
	}
	stopped := r.clean(ctx)
	receipts, complete, err := a.receipts(ctx, targets)
	if err != nil {
		return nil, errors.Join(stopped, err)
	}
	kept, err := r.withhold(ctx, targets, receipts, stopped != nil)
	if err != nil {
		return nil, errors.Join(stopped, err)
	}
	if complete && kept == 0 {
		return receipts, nil // a lost answer does not matter any more
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
		if stood := r.stood[t.Certname]; why == nil && byFile && stood != t.Serial {
			refused.Targets[i] = impossible(t, stood)
			continue
		}
		if why == nil {
			why = errors.New("the CRL does not list it, although the server reported no error: its certificate was deleted " +
				"without being revoked, or ca.conf has enable-infra-crl, where the server hides its full CRL")
		}
		a.poison[t.Serial] = true
		refused.Targets[i] = fmt.Errorf("serial %s of %q: %w", t.Serial, t.Certname, why)
	}
	return receipts, refused
}

// withhold takes back the receipts of revoked certificates that the server
// still has in signed/, as it stopped, or failed, between writing the CRL and deleting them:
// they would block their names, and nobody would clean them again. It says how many.
func (r *revocation) withhold(ctx context.Context, targets []ca.Target, receipts []node.Receipt, stopped bool) (kept int, err error) {
	var names []node.Certname
	for _, t := range targets {
		if stopped || r.failed[t.Certname] != nil {
			names = append(names, t.Certname)
		}
	}
	if len(names) == 0 {
		return 0, nil
	}
	standing, _, err := r.a.standing(ctx, names)
	if err != nil {
		return 0, err
	}
	stands := map[ca.Target]bool{}
	for i, name := range names {
		stands[ca.Target{Certname: name, Serial: standing[i]}] = true
	}
	for i, t := range targets {
		if receipts[i].Serial != "" && stands[ca.Target{Certname: t.Certname, Serial: t.Serial}] {
			receipts[i] = node.Receipt{}
			kept++
		}
	}
	return kept, nil
}

// receipts gives the receipts of the targets that the CRL lists now, in
// order, and says whether these are all.
func (a *revoker) receipts(ctx context.Context, targets []ca.Target) (receipts []node.Receipt, complete bool, err error) {
	serials := make([]node.Serial, len(targets))
	for i, t := range targets {
		serials[i] = t.Serial
	}
	number, listed, err := a.listed(ctx, serials...)
	if err != nil {
		return nil, false, err
	}
	a.unread = !a.lost.IsZero()
	receipts, complete = make([]node.Receipt, len(targets)), true
	url := a.base.JoinPath(apiPath, "certificate_revocation_list/ca").String()
	for i, t := range targets {
		if !listed[t.Serial] {
			complete = false
			continue
		}
		receipts[i] = node.Receipt{Serial: t.Serial, CRLNumber: number, PublishedAt: a.opts.Now().UTC(), PublishedTo: []string{url}}
		delete(a.poison, t.Serial)
	}
	return receipts, complete, nil
}

// quiet lets a revocation whose answer was lost come to its end, which can
// still remove what has the name by then.
func (a *revoker) quiet(ctx context.Context) error {
	for {
		left := a.atWork(ctx)
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

// atWork is how much longer the server may be at a revocation whose answer was lost.
func (a *revoker) atWork(ctx context.Context) time.Duration {
	if a.lost.IsZero() {
		return 0
	}
	left := max(a.quietTime(ctx)-time.Since(a.lost), 0)
	if left == 0 {
		a.lost = time.Time{}
	}
	return left
}

const (
	unlockedQuiet = 10 * time.Second // 7.x: /clean takes no lock
	lockedQuiet   = 65 * time.Second // later: it waits up to 60 s for the CRL's lock, and then looks the serials up
	askAgain      = 5 * time.Second  // for the version, while it is not known
)

// quietTime is how long a revocation whose answer was lost can still be at work.
func (a *revoker) quietTime(ctx context.Context) time.Duration {
	if a.opts.Quiet != 0 {
		return a.opts.Quiet
	}
	if a.running.Load() == nil {
		_, _ = a.version(ctx) // without an answer it is waited for as for the newest
	}
	quiet := lockedQuiet
	if version := a.running.Load(); version != nil && strings.HasPrefix(*version, "7.") {
		quiet = unlockedQuiet
	}
	return max(quiet, 2*a.longest)
}

// revocation is one call of Revoke.
type revocation struct {
	a      *revoker
	names  []node.Certname // to clean together
	alone  []node.Certname // to clean one by one: they failed before
	failed map[node.Certname]error
	stood  map[node.Certname]node.Serial // in signed/, before anything was cleaned; "": nothing
	worked bool                          // the server cleaned something
	singly bool                          // the server has no /clean
}

// plan asks what stands under each name and decides what to clean: names whose
// certificate is a target, and names that have none but whose target is
// not on the CRL, as 8.2.2 and later revoke by their inventory.
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
	r.a.unread = false
	standing, strange, err := r.a.standing(ctx, names)
	if err != nil {
		return err
	}
	for i, name := range names {
		r.stood[name] = standing[i]
		open := slices.ContainsFunc(serials[name], func(s node.Serial) bool { return !listed[s] })
		ours := slices.Contains(serials[name], standing[i])
		switch {
		case strange[i] != nil:
			r.failed[name] = strange[i]
		case !ours && !open:
		case !ours && standing[i] != "":
			r.failed[name] = fmt.Errorf("%w: serial %s, which a revocation by name would reach", node.ErrForeignCertificate, standing[i])
		case slices.ContainsFunc(serials[name], func(s node.Serial) bool { return r.a.poison[s] }):
			r.alone = append(r.alone, name)
		default:
			r.names = append(r.names, name)
		}
	}
	return nil
}

// standing returns the serial of what stands in signed/ under each name, ""
// where nothing does, and what is wrong with it where it is no certificate.
func (a *revoker) standing(ctx context.Context, names []node.Certname) ([]node.Serial, []error, error) {
	out, strange := make([]node.Serial, len(names)), make([]error, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(len(names), a.opts.Concurrency) {
		wg.Go(func() {
			for i := range next {
				cert, err := a.certificate(ctx, names[i])
				switch {
				case errors.Is(err, node.ErrForeignCertificate):
					strange[i] = err
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
	// One of them says enough: where the server is down they are all alike.
	return out, strange, errs[max(0, slices.IndexFunc(errs, func(err error) bool { return err != nil }))]
}
