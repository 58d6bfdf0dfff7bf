package puppetserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// apiPath is where Puppet Server mounts its CA API (web-routes.conf).
const apiPath = "/puppet-ca/v1/"

// maxAnswer is the longest answer. A CRL of a million entries has 50 MB.
const maxAnswer = 256 << 20

// call is one request; path is escaped already.
type call struct {
	method, path string
	body         []byte
	kind         string // content type of the body
	since        string // If-Modified-Since
	limit        time.Duration
}

// lostError means that the answer of a call was lost. The server may carry out the call, now or later.
type lostError struct{ error }

func (e lostError) Unwrap() error { return e.error }

func lost(err error) bool {
	_, is := errors.AsType[lostError](err)
	return is
}

// answer is an answer of the server, of any status.
type answer struct {
	code  int
	body  []byte
	date  time.Time // when the answer was sent, by the server's clock; zero: unknown
	start time.Time // a time before the call began, by the server's clock; zero: unknown
}

// statusError is an answer with an unexpected status.
type statusError struct {
	call    call
	code    int
	message string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s %s: %d %s", e.call.method, e.call.path, e.code, e.message)
}

// do sends one request, once. If Puppet Server or a proxy asks espm to wait, do sends it again after the wait, as far as
// c.limit and the caller's deadline allow. Its errors wrap node.ErrUnavailable. Either there is no
// answer; then a lostError says that the request may have been sent. Or Puppet Server did not get the call, or auth.conf
// forbids it.
func (a *server) do(ctx context.Context, c call) (answer, error) {
	if c.limit == 0 {
		c.limit = a.opts.Timeout
	}
	limit := time.Now().Add(c.limit)
	for {
		got, err := answer{code: http.StatusServiceUnavailable}, a.pause.err(a.base.Host)
		if err == nil {
			got, err = a.send(ctx, c)
		}
		if !waitFor(ctx, err, limit) {
			return got, err
		}
	}
}

func (a *server) send(ctx context.Context, c call) (answer, error) {
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return answer{}, unreachable(ctx, fmt.Errorf("%s %s: not sent, as too many calls are running", c.method, c.path))
	}
	transport, err := a.credentials.current()
	if err != nil {
		return answer{}, err
	}
	limited, cancel := context.WithTimeoutCause(ctx, c.limit, fmt.Errorf("no answer within %v", c.limit))
	defer cancel()
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(limited, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	req, err := a.request(traced, c)
	if err != nil {
		return answer{}, err
	}
	begin := time.Now()
	resp, err := transport.RoundTrip(req) // http.Client would follow redirects
	if err != nil {
		err = unreachable(limited, fmt.Errorf("%s %s://%s%s: %w", c.method, a.base.Scheme, a.base.Host, c.path, a.explain(err)))
		if sent.Load() {
			err = lostError{err}
		}
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil || len(body) > maxAnswer {
		return answer{}, lostError{unreachable(limited, fmt.Errorf("%s %s: the answer broke off after %d bytes: %w", c.method, c.path, len(body), err))}
	}
	got := answer{code: resp.StatusCode, body: body}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		got.date, got.start = date, date.Add(-time.Since(begin)-time.Second)
	}
	if err := a.checkOrigin(c, resp, body); err != nil {
		return got, err
	}
	if got.code == http.StatusForbidden {
		return got, a.forbidden(c, firstLine(body))
	}
	return got, nil
}

func (a *server) request(ctx context.Context, c call) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, c.method, a.base.Scheme+"://"+a.base.Host+c.path, bytes.NewReader(c.body))
	if err != nil {
		return nil, err
	}
	if c.kind != "" {
		req.Header.Set("Content-Type", c.kind)
	}
	if c.since != "" {
		req.Header.Set("If-Modified-Since", c.since)
	}
	return req, nil
}

// ask is do for calls that expect a status of 2xx. A 404 returns errGone, a
// 5xx returns an error that wraps node.ErrUnavailable.
func (a *server) ask(ctx context.Context, c call) ([]byte, error) {
	got, err := a.do(ctx, c)
	if err != nil {
		return nil, err
	}
	return got.body, got.check(c)
}

func (got answer) check(c call) error {
	switch {
	case got.code/100 == 2:
		return nil
	case got.code == http.StatusNotFound:
		return fmt.Errorf("%s %s: %w", c.method, c.path, errGone)
	}
	err := &statusError{c, got.code, firstLine(got.body)}
	switch {
	case got.code == http.StatusBadGateway || got.code == http.StatusGatewayTimeout: // a proxy lost the server's answer
		return lostError{fmt.Errorf("%w: %w", node.ErrUnavailable, err)}
	case got.code >= 500:
		return fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	}
	return err
}

// get fetches something, or returns nil if it is absent. It sends the GET once more if the
// answer was lost.
func (a *server) get(ctx context.Context, kind string, name node.Certname) ([]byte, error) {
	c := call{method: http.MethodGet, path: apiPath + kind + "/" + url.PathEscape(string(name))}
	got, err := a.do(ctx, c)
	if err != nil && ctx.Err() == nil && got.code == 0 {
		got, err = a.do(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	if got.code == http.StatusNotFound {
		return nil, nil
	}
	return got.body, got.check(c)
}

// setStatus is the call that sets the desired state of a name's certificate. ttl 0 means the server's default.
func setStatus(name node.Certname, state string, ttl time.Duration) call {
	body := map[string]any{"desired_state": state}
	if ttl != 0 {
		body["cert_ttl"] = int64(ttl / time.Second)
	}
	return call{method: http.MethodPut, path: statusPath(name), body: encode(body), kind: "application/json"}
}

func statusPath(name node.Certname) string {
	return apiPath + "certificate_status/" + url.PathEscape(string(name))
}

// encode never fails: bodies have only types that JSON can encode.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("puppetserver: encoding %T: %v", v, err))
	}
	return b
}
