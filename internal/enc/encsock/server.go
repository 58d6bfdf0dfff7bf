// Package encsock answers espm-enc on a local socket. The socket knows one
// question and reaches nothing else of espm.
//
// A client sends a name and a newline. A "?" before the name marks a question of a person, not for a catalog: it is
// no sighting, and the answer has no sensitive values. A "!" marks such a question whose answer has sensitive
// values. The answer is a status byte (enc.Status), a space, the length of the text in eight hexadecimal digits, a
// newline, and the text. Then the server closes the connection.
package encsock

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
)

const (
	maxQuestion = 1024            // bytes; a longer line is no certname
	maxClients  = 256             // connections that are served; more wait in the listen queue
	timeout     = 2 * time.Second // of one connection; the client waits no longer
	pause       = 50 * time.Millisecond
)

// Sightings records look-ups.
type Sightings interface {
	// Saw is called for each node that is classified for a catalog, before the answer is sent.
	Saw(ctx context.Context, n node.Node)
}

// Server answers on a listener.
type Server struct {
	Source    enc.Source
	Unknown   enc.Unknown
	Sightings Sightings
	Log       logrus.FieldLogger
	// Answered, if not nil, is called for each answer, even if it could not be sent. outcome is one of Outcomes;
	// took is the time since the question.
	Answered func(outcome string, took time.Duration)

	unknown atomic.Pointer[enc.Unknown] // of SetUnknown; nil: Unknown applies
}

// SetUnknown replaces Unknown, from the next question on. It may be called while Serve runs.
func (s *Server) SetUnknown(u enc.Unknown) { s.unknown.Store(&u) }

// Serve answers until ctx is done. Then it closes the listener, waits for the answers under way and returns nil. It
// returns an error if the listener fails.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxClients)
	for {
		slots <- struct{}{}
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if exhausted(err) {
			s.Log.WithError(err).Error("the enc socket can't accept a connection at present; espm tries again")
			<-slots
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("enc socket %s: %w", l.Addr(), err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer func() { // only this question fails. The value is not logged: it may hold a sensitive value
				if recover() != nil {
					s.Log.WithField("stack", string(debug.Stack())).Error("an enc question panicked")
				}
			}()
			if err := s.answer(ctx, conn); err != nil {
				s.Log.WithError(err).Debug("enc client gone")
			}
		})
	}
}

// exhausted reports whether err is a lack of file descriptors or memory. Such a lack may end, so the daemon must
// not.
func exhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

func (s *Server) answer(ctx context.Context, conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	line, err := bufio.NewReaderSize(conn, maxQuestion).ReadSlice('\n')
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		return fmt.Errorf("read the question: %w", err)
	}
	begun := time.Now()
	name := strings.TrimSuffix(string(line), "\n") // a line over maxQuestion is cut, and still too long for a certname
	name, redact := strings.CutPrefix(name, "?")
	reveal := false
	if !redact {
		name, reveal = strings.CutPrefix(name, "!")
	}
	a, classified := enc.Ask(ctx, s.Source, *cmp.Or(s.unknown.Load(), &s.Unknown), name, redact)
	if classified != nil && !redact && !reveal {
		s.Sightings.Saw(ctx, *classified)
	}
	if a.Status == enc.StatusFail {
		s.Log.WithFields(logrus.Fields{"certname": name, "reason": a.Text}).Warn("enc refused a node")
	}
	_, err = conn.Write(fmt.Appendf(nil, "%c %08x\n%s", a.Status, len(a.Text), a.Text))
	if s.Answered != nil {
		s.Answered(outcome(a, classified), time.Since(begun))
	}
	return err
}

// The outcomes of an answer.
const (
	outcomeKnown        = "known"
	outcomeEmpty        = "empty"        // an empty classification, for a node that is not registered
	outcomeCommand      = "command"      // enc.command, for a node that is not registered
	outcomeUnregistered = "unregistered" // no classification, as the node is not registered
	outcomeInvalid      = "invalid"      // the name is no certname
	outcomeFailed       = "error"
)

// Outcomes returns all outcomes that Answered may be given.
func Outcomes() []string {
	return []string{outcomeKnown, outcomeEmpty, outcomeCommand, outcomeUnregistered, outcomeInvalid, outcomeFailed}
}

func outcome(a enc.Answer, classified *node.Node) string {
	switch {
	case classified != nil:
		return outcomeKnown
	case a.Status == enc.StatusYAML:
		return outcomeEmpty
	case a.Status == enc.StatusCommand:
		return outcomeCommand
	case errors.Is(a.Err, node.ErrNodeNotFound):
		return outcomeUnregistered
	case errors.Is(a.Err, node.ErrInvalid):
		return outcomeInvalid
	default:
		return outcomeFailed
	}
}
