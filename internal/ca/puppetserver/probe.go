package puppetserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// nobody is a certname that no node has: labels may not end in a hyphen.
const nobody = "espm-probe-"

// Probe asks the server its version and, with one call each and without side
// effects, whether every auth.conf rule that is needed lets us in. Each problem is a
// line; a *ForbiddenError says how to grant what is missing. A server that
// can't be reached is one problem.
func (a *server) Probe(ctx context.Context) (version string, problems []error) {
	version, err := a.version(ctx)
	if forbidden := (*ForbiddenError)(nil); err != nil && !errors.As(err, &forbidden) {
		return "", []error{err}
	}
	note := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	note(err)
	_, err = a.trusted(ctx, 0)
	note(err)
	// {} lacks what /clean needs, which it finds out after it let us in.
	for _, c := range []call{
		{method: http.MethodGet, path: apiPath + "certificate_request/" + nobody},
		{method: http.MethodGet, path: statusPath(nobody)},
		{method: http.MethodPut, path: apiPath + "clean", body: []byte("{}"), kind: "application/json"},
	} {
		got, err := a.do(ctx, c)
		expected := []int{http.StatusOK, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed}
		if err == nil && !slices.Contains(expected, got.code) {
			err = got.check(c)
		}
		note(err)
	}
	return version, problems
}

// Clock returns what time it is at the server, to about a second.
func (a *server) Clock(ctx context.Context) (time.Time, error) {
	got, err := a.do(ctx, call{method: http.MethodGet, path: chainPath})
	if err != nil {
		return time.Time{}, err
	}
	return got.date, nil
}

// version returns the CA service's.
func (a *server) version(ctx context.Context) (string, error) {
	c := call{method: http.MethodGet, path: "/status/v1/services"}
	got, err := a.do(ctx, c)
	if err != nil {
		return "", err
	}
	// 503: a service that is still starting; the body is the same.
	if got.code == http.StatusNotFound {
		return "", fmt.Errorf("%w: %s has no %s: does Puppet Server still start there, or something else listen?", node.ErrUnavailable, a.base.Host, c.path)
	}
	if got.code != http.StatusServiceUnavailable {
		if err := got.check(c); err != nil {
			return "", fmt.Errorf("%w: %w", node.ErrUnavailable, err)
		}
	}
	var services map[string]struct {
		Version string `json:"service_version"`
	}
	if err := json.Unmarshal(got.body, &services); err != nil {
		return "", fmt.Errorf("%w: what answers at %s is no Puppet Server: %s: %w", node.ErrUnavailable, a.base.Host, c.path, err)
	}
	service, ok := services["ca"]
	if !ok {
		return "", fmt.Errorf("%w: the server at %s runs no CA service: the URL must be that of the CA's", node.ErrUnavailable, a.base.Host)
	}
	a.running.Store(&service.Version)
	return service.Version, nil
}
