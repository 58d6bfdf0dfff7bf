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

// probeName is a certname that no node can have: labels may not end in a hyphen.
const probeName = "espm-probe-"

// Probe asks the server for its version, and tries each auth.conf rule that espm needs with one call
// that changes nothing. Each problem is one
// line. A *ForbiddenError has the rule that is missing. If the server
// can't be reached, that is the only problem.
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
	// /clean checks the authorization first, and then refuses {}, as it has no certnames.
	for _, c := range []call{
		{method: http.MethodGet, path: apiPath + "certificate_request/" + probeName},
		{method: http.MethodGet, path: statusPath(probeName)},
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

// Clock returns the server's time, to about a second.
func (a *server) Clock(ctx context.Context) (time.Time, error) {
	got, err := a.do(ctx, call{method: http.MethodGet, path: chainPath})
	if err != nil {
		return time.Time{}, err
	}
	return got.date, nil
}

// version returns the version of the CA service.
func (a *server) version(ctx context.Context) (string, error) {
	c := call{method: http.MethodGet, path: "/status/v1/services"}
	got, err := a.do(ctx, c)
	if err != nil {
		return "", err
	}
	// 503 means that a service is still starting. The body is the same.
	if got.code == http.StatusNotFound {
		return "", fmt.Errorf("%w: %s has no %s: is Puppet Server still starting, or is it another program?", node.ErrUnavailable, a.base.Host, c.path)
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
		return "", fmt.Errorf("%w: the program at %s is no Puppet Server, as %s answers %q: set authority.puppetserver.url to the CA server", node.ErrUnavailable, a.base.Host, c.path, firstLine(got.body))
	}
	service, ok := services["ca"]
	if !ok {
		return "", fmt.Errorf("%w: the server at %s runs no CA service: set authority.puppetserver.url to the CA server", node.ErrUnavailable, a.base.Host)
	}
	a.running.Store(&service.Version)
	return service.Version, nil
}
