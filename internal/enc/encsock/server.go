// Package encsock answers espm-enc on a local socket. The socket knows one
// question and reaches nothing else of espm.
//
// A client sends a name and a newline. A name behind a "?" is asked for by
// somebody who wants to know, not for a catalog: it counts as no sighting, and sensitive
// values are not told. Behind a "!" they are told, and it counts as none either. The answer is a status byte
// (enc.Status), a space, the length of the text in eight hexadecimal
// digits, a newline, and the text. The server closes the connection then.
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
	maxClients  = 256             // at once; more wait in the listen queue
	timeout     = 2 * time.Second // of one connection: the client gives up by then
	pause       = 50 * time.Millisecond
)

// Sightings is told of each node that is classified for a catalog, before the answer goes out.
type Sightings interface {
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

	unknown atomic.Pointer[enc.Unknown] // in place of Unknown, once set
}

// SetUnknown changes what is done about nodes that espm does not know, from the next question on. It may be
// called while Serve runs.
func (s *Server) SetUnknown(u enc.Unknown) { s.unknown.Store(&u) }

// Serve answers until ctx is done, then closes the listener, lets the
// answers under way end, and returns nil. Any other end is an error.
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
			s.Log.WithError(err).Error("enc socket takes no connection for the moment")
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
			defer func() { // it fails this question alone; its value may hold what must not be logged
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

// exhausted tells that a connection can't be had now, for want of something
// that comes back: the daemon must not end for it.
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
		return fmt.Errorf("reading the question: %w", err)
	}
	begun := time.Now()
	name := strings.TrimSuffix(string(line), "\n") // a longer line is cut, and too long for a certname still
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
