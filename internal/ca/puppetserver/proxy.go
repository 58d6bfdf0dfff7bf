package puppetserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// proxyError is an answer that does not come from Puppet Server, but from a proxy or another program. The
// error is a node.ErrUnavailable: a retry succeeds after the setting or the proxy is corrected.
type proxyError struct {
	call, answer, hint string
}

func (e *proxyError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.call, e.answer, e.hint)
}

func (e *proxyError) Is(target error) bool { return target == node.ErrUnavailable }

// checkOrigin returns an error if the answer does not come from Puppet Server, or asks espm to wait.
// Puppet Server did not process the call, unless the error is a lostError.
func (a *server) checkOrigin(c call, resp *http.Response, body []byte) error {
	e := &proxyError{call: fmt.Sprintf("%s %s://%s%s", c.method, a.base.Scheme, a.base.Host, c.path)}
	page := isPage(body)
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
		return a.pause.begin(retryAfter(resp.Header.Get("Retry-After"), a.opts.Now()), a.base.Host)
	case code/100 == 3 && code != http.StatusNotModified:
		e.answer = fmt.Sprintf("the answer is %d, a redirect to %q, which espm does not follow", code, short(resp.Header.Get("Location")))
		e.hint = "set authority.puppetserver.url to the address of the CA server itself"
	case code == http.StatusUnauthorized, code == http.StatusProxyAuthRequired:
		e.answer = fmt.Sprintf("the answer is %d: a proxy asks for a login. Puppet Server knows espm by its client certificate", code)
		e.hint = "set authority.puppetserver.url to the address of the CA server itself, not of a proxy that ends TLS"
	case page && (code/100 == 2 || code/100 == 4):
		e.answer = fmt.Sprintf("the answer is %d with a web page (%q), which is not Puppet Server's", code, firstLine(body))
		e.hint = "set authority.puppetserver.url to the address of the CA server itself, or wait until it has started"
	default:
		return nil
	}
	if resp.StatusCode/100 == 2 {
		return lostError{e} // the sender of the page may have forwarded the call
	}
	return e
}

const (
	// unsaidWait is the wait if an answer has no Retry-After.
	unsaidWait = 5 * time.Second
	// longestWait bounds a Retry-After. Puppet Server sends at most 30 minutes by default
	// (max-retry-delay).
	longestWait = time.Hour
)

// retryAfter parses a Retry-After header: seconds, or a date.
func retryAfter(text string, now time.Time) time.Duration {
	wait := unsaidWait
	if seconds, err := strconv.Atoi(text); err == nil {
		wait = time.Duration(min(seconds, int(longestWait/time.Second))) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), longestWait)
}

// pause is the wait that an answer demanded. No call is sent during a pause.
type pause struct{ until atomic.Int64 } // in Unix nanoseconds

// begin begins a pause, and returns the error of the call that was refused.
func (p *pause) begin(wait time.Duration, host string) error {
	p.until.Store(time.Now().Add(wait).UnixNano())
	return busy(wait, host)
}

func busy(wait time.Duration, host string) error {
	return &node.BusyError{
		Reason:     fmt.Sprintf("Puppet Server at %s, or a proxy before it, has too much to do, and asks espm to wait", host),
		RetryAfter: (wait + time.Second - 1).Truncate(time.Second),
	}
}

// err returns a *node.BusyError during a pause.
func (p *pause) err(host string) error {
	if wait := time.Until(time.Unix(0, p.until.Load())); wait > 0 {
		return busy(wait, host)
	}
	return nil
}

// waitFor waits for the time in a *node.BusyError. waitFor returns false, without a wait, for any other
// error, or if the wait would end after the limit or the caller's deadline.
func waitFor(ctx context.Context, err error, limit time.Time) bool {
	busy, ok := errors.AsType[*node.BusyError](err)
	if !ok {
		return false
	}
	end := time.Now().Add(busy.RetryAfter)
	if deadline, has := ctx.Deadline(); end.After(limit) || has && end.After(deadline) {
		return false
	}
	timer := time.NewTimer(busy.RetryAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// notTaken reports whether Puppet Server certainly did not process the call.
func notTaken(err error) bool {
	status, answered := errors.AsType[*statusError](err)
	return err != nil && (!answered || status.code == http.StatusServiceUnavailable) && !lost(err) && !errors.Is(err, errGone)
}

// isPage reports whether a body is HTML or XML. The answers of Puppet Server are PEM, JSON or a line of
// text.
func isPage(body []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(body), []byte("<")) }

var (
	title = regexp.MustCompile(`(?is)<title[^>]*>(.*?)</title>`)
	tag   = regexp.MustCompile(`(?s)<(?:style|script).*?</(?:style|script)>|<[^>]*>`)
)

// firstLine shortens a body for logs and errors. For a web page it returns the title.
func firstLine(body []byte) string {
	if isPage(body) {
		body = body[:min(len(body), 64<<10)]
		if found := title.FindSubmatch(body); found != nil {
			body = found[1]
		}
		body = bytes.Join(bytes.Fields(tag.ReplaceAll(body, []byte(" "))), []byte(" "))
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	return short(line)
}

func short(line string) string {
	const limit = 500
	if len(line) > limit {
		line = line[:limit] + "..."
	}
	return strings.ToValidUTF8(line, "?")
}
