package audit

import (
	"net"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/espm-project/espm/internal/node"
)

// Bounds of the lines of refused calls, so that nobody can fill the disk with them, or force the prune of other lines.
// In a window each pair of principal and host gets a few lines of its own. At the window's end it gets one line that
// counts the other calls.
const (
	refusedWindow = time.Minute
	maxOfPair     = 10  // lines of one principal and peer
	maxOfKind     = 60  // lines of all callers with a role, and again of all strangers: neither uses up the other's
	maxSums       = 16  // sums of each kind
	maxWaiting    = 500 // lines in memory, while the store can't write
)

// pair is a refused caller and its host.
type pair struct{ principal, host string }

// sum counts the refused calls of a pair that get no line of their own.
type sum struct {
	last  node.AuditLine
	count int64
	since node.AuditTime
}

// kind counts the lines of callers with a role, or of strangers.
type kind struct {
	own  int
	of   map[pair]int
	sums map[pair]*sum // pair{} has the calls of all pairs beyond maxSums
}

// refusals are lines of refused calls that are not in the chain yet.
type refusals struct {
	mu    sync.Mutex
	lines []node.AuditLine
	began time.Time // start of the window
	kinds map[bool]*kind
}

func (r *refusals) add(l node.AuditLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l = l.Bounded()
	r.roll(l.Time.Time, false)
	if r.kinds == nil {
		r.began, r.kinds = l.Time.Time, map[bool]*kind{}
	}
	k := r.kinds[l.Role != ""]
	if k == nil {
		k = &kind{of: map[pair]int{}, sums: map[pair]*sum{}}
		r.kinds[l.Role != ""] = k
	}
	who := pair{l.Principal, host(l.Peer)}
	if k.of[who] < maxOfPair && k.own < maxOfKind && len(r.lines) < maxWaiting {
		k.of[who]++
		k.own++
		r.lines = append(r.lines, l)
		return
	}
	if k.sums[who] == nil && len(k.sums) >= maxSums {
		who = pair{}
	}
	s := k.sums[who]
	if s == nil {
		s = &sum{since: l.Time}
		k.sums[who] = s
	}
	s.last = l
	s.count++
}

// host returns the peer without the port, which each connection changes.
func host(peer string) string {
	if h, _, err := net.SplitHostPort(peer); err == nil {
		return h
	}
	return peer
}

// roll ends a window that is over, and turns its sums into lines.
func (r *refusals) roll(now time.Time, force bool) {
	if age := now.Sub(r.began); !force && age >= 0 && age < refusedWindow {
		return
	}
	for _, k := range r.kinds {
		for who, s := range k.sums {
			r.lines = append(r.lines, s.line(who, now))
		}
	}
	r.kinds = nil
	if len(r.lines) > 2*maxWaiting { // the store can't be written for a long time
		r.lines = r.lines[:2*maxWaiting]
	}
}

func (s *sum) line(who pair, now time.Time) node.AuditLine {
	l := node.AuditLine{
		ID: uuid.Must(uuid.NewV7()).String(), Time: node.NewAuditTime(now), Action: node.ActionManyRefused,
		Principal: who.principal, Role: s.last.Role, Peer: who.host, Outcome: s.last.Outcome, Count: s.count, Since: s.since,
		Comment: "more refused calls; the outcome is that of the last",
	}
	if who == (pair{}) {
		l.Principal, l.Comment = "others", "more refused calls of several callers; the outcome is that of the last"
	}
	return l
}

// drain removes and returns the lines to write. With all, it also returns the sums of a window that is not over.
func (r *refusals) drain(now time.Time, all bool) []node.AuditLine {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.roll(now, all)
	lines := r.lines
	r.lines = nil
	return lines
}

// putBack returns lines that could not be written.
func (r *refusals) putBack(lines []node.AuditLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(lines, r.lines...)
}

// Refuse records that a call was refused, or failed. It never waits for the disk: the line is in memory until the sealer
// writes it. So a kill loses the lines of about a second, and the sums of a minute.
func (l *Log) Refuse(line node.AuditLine, outcome string) {
	line.Outcome = outcome
	if line.Principal == "" {
		line.Principal = "anonymous"
	}
	l.refused.add(line)
}
