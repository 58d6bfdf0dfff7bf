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

// proxyError is an answer that Puppet Server does not give: a proxy or another program answered in its place. It is a
// node.ErrUnavailable: a retry succeeds once the setting is changed.
type proxyError struct {
	call, answer, hint string
}

func (e *proxyError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.call, e.answer, e.hint)
}

// Is reports whether target is node.ErrUnavailable.
func (e *proxyError) Is(target error) bool { return target == node.ErrUnavailable }

// Unless the error of this function is a lostError, Puppet Server did not get the call.
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
		return lostError{e} // whoever made the page may have passed the call on
	}
	return e
}

const (
	// unsaidWait is the wait after a 429 without a Retry-After.
	unsaidWait = 5 * time.Second
	// longestWait bounds a Retry-After. Puppet Server sends at most half an hour by default (max-retry-delay).
	longestWait = time.Hour
)

// retryAfter reads a Retry-After: seconds, or a time.
func retryAfter(text string, now time.Time) time.Duration {
	wait := unsaidWait
	if seconds, err := strconv.Atoi(text); err == nil {
		wait = time.Duration(min(seconds, int(longestWait/time.Second))) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), longestWait)
}

// pause is the time that an answer asked espm to wait. It goes for all calls.
type pause struct{ until atomic.Int64 } // in Unix nanoseconds

// begin begins a pause, and returns its error.
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

// waitFor waits as long as a *node.BusyError says. It returns false at once if the wait would go beyond the limit or the
// caller's deadline, and for another error.
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

// notTaken reports whether the error of a call says that Puppet Server did not get it, or forbade it unread.
func notTaken(err error) bool {
	status, answered := errors.AsType[*statusError](err)
	return err != nil && (!answered || status.code == http.StatusServiceUnavailable) && !lost(err) && !errors.Is(err, errGone)
}

// isPage reports whether a body is HTML or XML. Puppet Server's own answers are PEM, JSON or a line of text.
func isPage(body []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(body), []byte("<")) }

var (
	title = regexp.MustCompile(`(?is)<title[^>]*>(.*?)</title>`)
	tag   = regexp.MustCompile(`(?s)<(?:style|script).*?</(?:style|script)>|<[^>]*>`)
)

// firstLine shortens the body of an error for logs and errors: of a page it returns the title.
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
