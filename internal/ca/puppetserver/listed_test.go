package puppetserver

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
)

func isListed(t *testing.T, a *Authority, serial node.Serial, want bool) {
	t.Helper()
	if number, err := a.Listed(t.Context(), serial); err != nil || (number != "") != want {
		t.Errorf("%s is on CRL %q, %v, want that to be %v", serial, number, err, want)
	}
}

func cannotTell(t *testing.T, a *Authority, serial node.Serial) {
	t.Helper()
	if number, err := a.Listed(t.Context(), serial); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("%s is on CRL %q, %v, want no answer", serial, number, err)
	}
}

// A server that does not answer need not be asked about what it was not sent, or has answered.
func TestListedWhileTheServerIsDown(t *testing.T) {
	n := newNames(t)
	a := n.stub.open(t)
	n.stub.set(func() { n.stub.down = true })
	isListed(t, a, "0ABC", false)
	n.stub.set(func() { n.stub.down = false })

	all := targets(t, a, "web1.test", "web2.test")
	_, err := a.Revoke(t.Context(), all[:1])
	check(t, err)
	n.stub.set(func() { n.stub.down = true })
	isListed(t, a, all[0].Serial, true)
	isListed(t, a, all[1].Serial, false)
	if _, err := a.Revoke(t.Context(), all[1:]); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("revoked: %v", err)
	}
	isListed(t, a, all[1].Serial, false) // nothing was sent
}

// After a lost answer, Listed refuses to answer until the server has finished. Then it does not use the cached CRL.
func TestListedAfterALostAnswer(t *testing.T) {
	n := newNames(t)
	n.stub.options.Quiet = time.Hour
	a := n.stub.open(t)
	all := targets(t, a, "web1.test", "web2.test")
	n.stub.front(func(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
		if r.URL.Path == apiPath+"clean" {
			panic(http.ErrAbortHandler)
		}
		next(w, r)
	})
	if _, err := a.Revoke(t.Context(), all[:1]); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("revoked: %v", err)
	}
	_, err := a.Listed(t.Context(), all[0].Serial)
	if busy, ok := errors.AsType[*node.BusyError](err); !ok || busy.RetryAfter < 59*time.Minute || busy.RetryAfter > time.Hour {
		t.Errorf("got %v", err)
	}
	_, err = n.stub.directory.Revoke(t.Context(), all[:1]) // the server does it late
	check(t, err)
	n.stub.set(func() { n.stub.mtime, n.stub.down = n.stub.now, true })
	a.opts.Quiet = time.Nanosecond
	cannotTell(t, a, all[0].Serial)
	n.stub.set(func() { n.stub.down = false })
	isListed(t, a, all[0].Serial, true)
	isListed(t, a, all[1].Serial, false)
}

// No process remembers the calls of an earlier process.
func TestListedAfterAnEarlierProcess(t *testing.T) {
	n := newNames(t)
	n.stub.options.Quiet, n.stub.options.Interrupted = time.Hour, true
	a := n.stub.open(t)
	cannotTell(t, a, "0ABC")
	a.opts.Quiet = time.Nanosecond
	n.stub.set(func() { n.stub.down = true })
	cannotTell(t, a, "0ABC")
	n.stub.set(func() { n.stub.down = false })
	isListed(t, a, "0ABC", false)
}

// A cancelled call gets an error, not the last known CRL, even if no revocation runs.
func TestListedCancelled(t *testing.T) {
	a := newNames(t).stub.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		if _, err := a.Listed(ctx, "0ABC"); !errors.Is(err, context.Canceled) || !errors.Is(err, node.ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
	}
}
