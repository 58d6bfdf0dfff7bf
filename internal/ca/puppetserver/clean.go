package puppetserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
)

const (
	// maxBatch is how many names one call of /clean has at most. Each call reads, signs and writes the
	// whole CRL, and holds its lock meanwhile: more names save little, and hold up GETs of the CRL.
	maxBatch = 100
	// maxFailures is how many names may fail, with none that works, until it is
	// the server that is taken to fail.
	maxFailures = 16
)

// clean cleans the names that were planned. An error means that the server
// can't act now; what fails for one name is kept in failed.
func (r *revocation) clean(ctx context.Context) error {
	for names := r.names; len(names) > 0; {
		n := min(r.a.batch, len(names))
		if err := r.cleanBatch(ctx, names[:n]); err != nil {
			return err
		}
		names = names[n:]
	}
	for _, name := range r.alone {
		if err := r.cleanBatch(ctx, []node.Certname{name}); err != nil {
			return err
		}
	}
	return nil
}

// cleanBatch cleans names in one call. The server fails a batch for one name
// that it can't revoke, before it has revoked any; so a failed one is cut in halves.
func (r *revocation) cleanBatch(ctx context.Context, names []node.Certname) error {
	a := r.a
	if r.singly {
		return r.cleanSingly(ctx, names)
	}
	c := call{
		method: http.MethodPut, path: apiPath + "clean", limit: a.opts.RevokeLimit, kind: "application/json",
		body: encode(map[string][]node.Certname{"certnames": names}),
	}
	begin := time.Now()
	a.unread = true
	got, err := a.do(ctx, c)
	a.adapt(len(names), time.Since(begin), err)
	if err != nil {
		r.lose(err)
		return err
	}
	switch {
	case got.code == http.StatusOK:
		r.worked = true
		a.longest = max(a.longest, time.Since(begin))
		return nil
	case got.code == http.StatusNotFound || got.code == http.StatusMethodNotAllowed:
		// For this once: the next server at this address may have it.
		a.opts.Log.Warn("the server has no /clean, which came with Puppet Server 6.14: revoking one by one")
		r.singly = true
		return r.cleanSingly(ctx, names)
	case got.code != http.StatusInternalServerError:
		err := got.check(c)
		r.lose(err)
		return fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	case len(names) > 1:
		half := len(names) / 2
		if err := r.cleanBatch(ctx, names[:half]); err != nil {
			return err
		}
		return r.cleanBatch(ctx, names[half:])
	}
	return r.fail(names[0], &statusError{c, got.code, firstLine(got.body)})
}

// adapt halves the next batch where this one had no answer within RevokeLimit. A batch that takes less
// than a quarter of that doubles the next one, up to maxBatch.
func (a *revoker) adapt(names int, took time.Duration, err error) {
	switch limit := a.opts.RevokeLimit; {
	case err != nil && took >= limit:
		a.batch = max(1, names/2)
	case err == nil && took < limit/4 && names >= a.batch:
		a.batch = min(2*names, maxBatch)
	}
}

// lose notes that the server may still be at a revocation, if err says so.
func (r *revocation) lose(err error) {
	if lost(err) {
		r.a.lost = time.Now()
	}
}

// fail keeps what is wrong with a name, or finds that it is the server.
func (r *revocation) fail(name node.Certname, err error) error {
	r.failed[name] = err
	if !r.worked && len(r.failed) >= maxFailures {
		return fmt.Errorf("%w: the server fails for every name: %w", node.ErrUnavailable, err)
	}
	return nil
}

// cleanSingly does what /clean does with the calls that every server has:
// revoke, and delete once the CRL lists it. A request under the name, which
// that would delete too, is not ours: then the certificate stays.
func (r *revocation) cleanSingly(ctx context.Context, names []node.Certname) error {
	for _, name := range names {
		r.a.unread = true
		_, err := r.a.ask(ctx, setStatus(name, "revoked", 0))
		status, ok := errors.AsType[*statusError](err)
		switch {
		case err == nil:
			r.worked = true
		case errors.Is(err, errGone) || ok && status.code == http.StatusConflict:
			continue // it has no certificate; the CRL tells
		case ok && status.code == http.StatusInternalServerError:
			if err := r.fail(name, status); err != nil {
				return err
			}
			continue
		default:
			r.lose(err)
			return err
		}
	}
	return r.remove(ctx, names)
}

// remove frees names whose certificate is revoked.
func (r *revocation) remove(ctx context.Context, names []node.Certname) error {
	standing, _, err := r.a.standing(ctx, names)
	if err != nil {
		return err
	}
	_, listed, err := r.a.listed(ctx, slices.DeleteFunc(slices.Clone(standing), func(s node.Serial) bool { return s == "" })...)
	if err != nil {
		return err
	}
	for i, name := range names {
		if !listed[standing[i]] {
			continue
		}
		csr, err := r.a.get(ctx, "certificate_request", name)
		if err != nil {
			return err
		}
		if csr != nil {
			r.a.opts.Log.WithField("certname", name).Warn("the revoked certificate stays, as a certificate request stands beside it")
			continue
		}
		if _, err := r.a.ask(ctx, call{method: http.MethodDelete, path: statusPath(name)}); err != nil && !errors.Is(err, errGone) {
			r.lose(err)
			return fmt.Errorf("removing the revoked certificate of %q: %w", name, err)
		}
	}
	return nil
}
