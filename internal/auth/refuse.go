package auth

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
)

// Refusals stores the audit lines of refused calls; audit.Log implements it. Refuse never waits for the disk.
type Refusals interface {
	Refuse(line node.AuditLine, outcome string)
}

// Failure is a call that ended with an error: it was refused, or its work failed.
type Failure struct {
	Caller  node.Caller // a stranger has a peer, but no name and no role
	Method  string
	Err     error
	Outcome string                // the error's reason, from node.ErrorReason or from the transport
	About   func(*node.AuditLine) // adds the certname, the serial and so on of the call; nil: unknown
}

// Failed logs and audits a call that ended with an error, and returns the error that the caller may be told.
// For a method that changes something, every failure gets an audit line. For a method that only reads, only a refusal
// does. A change gets its audit line in the commit of the change, not here.
func (g *Gate) Failed(f Failure) error {
	action := ActionOf(f.Method)
	denied := f.Outcome == node.ReasonUnauthenticated || f.Outcome == node.ReasonNotPermitted
	if denied {
		g.strangers.Warn("a call was refused", logrus.Fields{"method": node.Shorten(f.Method, maxMethod), "principal": f.Caller.Name, "role": f.Caller.Role, "peer": f.Caller.Peer, "reason": f.Err.Error()})
	}
	if denied || action != node.ActionRead {
		line := audit.Line(node.WithCaller(context.Background(), f.Caller), g.o.Now(), action)
		line.Method = f.Method
		if f.About != nil {
			f.About(&line)
		}
		g.o.Refusals.Refuse(line, f.Outcome)
	}
	if errors.Is(f.Err, node.ErrUnauthenticated) {
		return node.ErrUnauthenticated // a stranger must not learn the cause
	}
	return f.Err
}

// maxMethod bounds a method's name in the log, because a stranger chooses the name.
const maxMethod = 100

// RefuseConnection logs and audits a connection whose handshake failed. A connection that ended without a byte gets no
// audit line: it may be a load balancer's probe.
func (g *Gate) RefuseConnection(address string, err error) {
	fields := logrus.Fields{"peer": address, "reason": err.Error()}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		fields["subject"], fields["serial"], fields["reason"] = refused.Subject, refused.Serial, refused.Reason.Error()
	}
	g.strangers.Warn("a connection was refused", fields)
	if errors.Is(err, io.EOF) {
		return
	}
	line := audit.Line(node.WithCaller(context.Background(), node.Caller{Peer: address}), g.o.Now(), node.ActionConnect)
	line.Comment = err.Error()
	g.o.Refusals.Refuse(line, node.ReasonUnauthenticated)
}

// LimitedLog keeps strangers from filling the log. At most five entries a second are written, and at most fifty in a
// burst. The other entries are counted.
type LimitedLog struct {
	log   logrus.FieldLogger
	limit *rate.Limiter
	more  atomic.Int64
}

// NewLimitedLog returns a LimitedLog that writes to log.
func NewLimitedLog(log logrus.FieldLogger) *LimitedLog {
	return &LimitedLog{log: log, limit: rate.NewLimiter(5, 50)}
}

// Warn writes an entry, with the number of entries that were left out since the last one.
func (s *LimitedLog) Warn(what string, fields logrus.Fields) {
	if !s.limit.Allow() {
		s.more.Add(1)
		return
	}
	if more := s.more.Swap(0); more > 0 {
		fields["left_out_before"] = more
	}
	s.log.WithFields(fields).Warn(what)
}
