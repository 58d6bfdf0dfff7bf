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
	// maxBatch is the most names in one call of /clean. Each call reads, signs and writes the
	// whole CRL, and GETs of the CRL wait meanwhile. More names would save little time and make the
	// GETs wait longer.
	maxBatch = 100
	// maxFailures is how many names may fail, without one success, before the error is
	// the server's.
	maxFailures = 16
)

// clean cleans the planned names. An error means that the server
// can't revoke now. The errors of single names go to failed.
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

// cleanBatch cleans names in one call. If the server can't revoke one name, it refuses the
// batch before it revokes any. Then cleanBatch retries each half.
func (r *revocation) cleanBatch(ctx context.Context, names []node.Certname) error {
	a := r.a
	if r.oneByOne {
		return r.cleanOneByOne(ctx, names)
	}
	c := call{
		method: http.MethodPut, path: apiPath + "clean", limit: a.opts.RevokeLimit, kind: "application/json",
		body: encode(map[string][]node.Certname{"certnames": names}),
	}
	begin := time.Now()
	a.crlStale = true
	got, err := a.do(ctx, c)
	a.adapt(len(names), time.Since(begin), err)
	if err != nil {
		r.noteLost(err)
		return err
	}
	switch {
	case got.code == http.StatusOK:
		r.cleanedAny = true
		a.longest = max(a.longest, time.Since(begin))
		return nil
	case got.code == http.StatusNotFound || got.code == http.StatusMethodNotAllowed:
		// Only for this call: the server may be upgraded.
		a.opts.Log.Warn("the server has no /clean, which Puppet Server has since 6.14: espm revokes one by one")
		r.oneByOne = true
		return r.cleanOneByOne(ctx, names)
	case got.code != http.StatusInternalServerError:
		err := got.check(c)
		r.noteLost(err)
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

// adapt halves the size of the next batch if this one had no answer within RevokeLimit. It doubles the size, up to
// maxBatch, if the batch took less than a quarter of RevokeLimit.
func (a *revoker) adapt(names int, took time.Duration, err error) {
	switch limit := a.opts.RevokeLimit; {
	case err != nil && took >= limit:
		a.batch = max(1, names/2)
	case err == nil && took < limit/4 && names >= a.batch:
		a.batch = min(2*names, maxBatch)
	}
}

// noteLost stores the time of a lost answer, as the server may still work on the revocation.
func (r *revocation) noteLost(err error) {
	if lost(err) {
		r.a.lostAt = time.Now()
	}
}

// fail stores the error of a name. It returns an error if the server fails for every name.
func (r *revocation) fail(name node.Certname, err error) error {
	r.failed[name] = err
	if !r.cleanedAny && len(r.failed) >= maxFailures {
		return fmt.Errorf("%w: the server fails for every name: %w", node.ErrUnavailable, err)
	}
	return nil
}

// cleanOneByOne does the work of /clean with older calls: it revokes each certificate, and deletes it once the
// CRL lists it. A delete would also delete a certificate request of the name, which is not ours. So the
// certificate stays if there is such a request.
func (r *revocation) cleanOneByOne(ctx context.Context, names []node.Certname) error {
	for _, name := range names {
		r.a.crlStale = true
		_, err := r.a.ask(ctx, setStatus(name, "revoked", 0))
		status, ok := errors.AsType[*statusError](err)
		switch {
		case err == nil:
			r.cleanedAny = true
		case errors.Is(err, errGone) || ok && status.code == http.StatusConflict:
			continue // the name has no certificate; receipts checks the CRL
		case ok && status.code == http.StatusInternalServerError:
			if err := r.fail(name, status); err != nil {
				return err
			}
			continue
		default:
			r.noteLost(err)
			return err
		}
	}
	return r.remove(ctx, names)
}

// remove deletes the certificates that are revoked, so that their names can have new ones.
func (r *revocation) remove(ctx context.Context, names []node.Certname) error {
	current, _, err := r.a.currentSerials(ctx, names)
	if err != nil {
		return err
	}
	_, listed, err := r.a.listed(ctx, slices.DeleteFunc(slices.Clone(current), func(s node.Serial) bool { return s == "" })...)
	if err != nil {
		return err
	}
	for i, name := range names {
		if !listed[current[i]] {
			continue
		}
		csr, err := r.a.get(ctx, "certificate_request", name)
		if err != nil {
			return err
		}
		if csr != nil {
			r.a.opts.Log.WithField("certname", name).Warn("the revoked certificate stays, as the name has a certificate request too")
			continue
		}
		if _, err := r.a.ask(ctx, call{method: http.MethodDelete, path: statusPath(name)}); err != nil && !errors.Is(err, errGone) {
			r.noteLost(err)
			return fmt.Errorf("remove the revoked certificate of %q: %w", name, err)
		}
	}
	return nil
}
