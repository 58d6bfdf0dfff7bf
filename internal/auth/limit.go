package auth

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/espm-project/espm/internal/node"
)

// Limits of a principal that is not an admin. A grant may set the first two to other values.
const (
	DefaultRequests       = 100 // a second, and at most as many in a burst
	DefaultOpenProvisions = 32
	OpenStreams           = 32     // a watch is one of them
	maxPrincipals         = 10_000 // principals with their own counters in memory
)

// Limits counts the requests, open provisions and open streams of each principal. Admins have no limits.
type Limits struct {
	now func() time.Time
	mu  sync.Mutex
	all map[string]*counted

	swept time.Time
}

// counted has the counters of one principal.
type counted struct {
	requests            *rate.Limiter
	provisions, streams int // under way
}

// NewLimits returns limits without any counts.
func NewLimits(now func() time.Time) *Limits {
	return &Limits{now: now, all: map[string]*counted{}}
}

// Request counts a request, or returns a *node.LimitError if the principal sends requests too fast.
func (l *Limits) Request(c node.Caller) error {
	if c.Role == node.Admin {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	one, now := l.of(c), l.now()
	wait := one.requests.ReserveN(now, 1)
	if delay := wait.DelayFrom(now); delay > 0 {
		wait.CancelAt(now)
		return &node.LimitError{Kind: node.ErrRateLimited, Limit: fmt.Sprintf("%v a second", float64(one.requests.Limit())), RetryAfter: delay}
	}
	return nil
}

// Provision counts an open provision until done is called, or returns a *node.LimitError if too many are open.
func (l *Limits) Provision(c node.Caller) (done func(), err error) {
	most := cmp.Or(c.Grant.OpenProvisions, DefaultOpenProvisions)
	return l.enter(c, func(one *counted) *int { return &one.provisions }, most, node.ErrOpenProvisions)
}

// Stream counts an open stream until done is called, or returns a *node.LimitError if too many are open.
func (l *Limits) Stream(c node.Caller) (done func(), err error) {
	return l.enter(c, func(one *counted) *int { return &one.streams }, OpenStreams, node.ErrOpenStreams)
}

func (l *Limits) enter(c node.Caller, count func(*counted) *int, most int, kind error) (done func(), err error) {
	if c.Role == node.Admin {
		return func() {}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	open := count(l.of(c))
	if *open >= most {
		return nil, &node.LimitError{Kind: kind, Limit: fmt.Sprintf("%d at once", most), RetryAfter: time.Second}
	}
	*open++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*open--
	}, nil
}

// of returns a principal's counters. At maxPrincipals, counters that equal new ones are dropped. If none can be dropped,
// all further principals share one set of counters.
func (l *Limits) of(c node.Caller) *counted {
	perSecond := rate.Limit(cmp.Or(c.Grant.RequestsPerSecond, DefaultRequests))
	burst := max(1, int(perSecond))
	name, now := c.Name, l.now()
	one, found := l.all[name]
	if !found && len(l.all) >= maxPrincipals && !l.sweep(now) {
		name = ""
		one, found = l.all[name]
	}
	if !found {
		one = &counted{requests: rate.NewLimiter(perSecond, burst)}
		l.all[name] = one
	}
	if one.requests.Limit() != perSecond {
		one.requests.SetLimitAt(now, perSecond)
		one.requests.SetBurstAt(now, burst)
	}
	return one
}

// sweep drops counters that equal new ones, at most once a second, and reports whether there is room for another
// principal.
func (l *Limits) sweep(now time.Time) bool {
	if now.Sub(l.swept) < time.Second {
		return false
	}
	l.swept = now
	for name, one := range l.all {
		if one.provisions == 0 && one.streams == 0 && one.requests.TokensAt(now) >= float64(one.requests.Burst()) {
			delete(l.all, name)
		}
	}
	return len(l.all) < maxPrincipals
}
