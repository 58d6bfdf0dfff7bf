// Package encsock answers espm-enc on a local socket. The socket knows one
// question and reaches nothing else of espm.
//
// A client sends a name and a newline. The answer is a status byte
// (enc.Status), a space, the length of the text in eight hexadecimal
// digits, a newline, and the text. The server closes the connection then.
package encsock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/enc"
)

const (
	maxQuestion = 1024            // bytes; a longer line is no certname
	maxClients  = 256             // at once; more wait in the listen queue
	timeout     = 2 * time.Second // of one connection: the client gives up by then
)

// Server answers on a listener.
type Server struct {
	Source  enc.Source
	Unknown enc.Unknown
	Log     logrus.FieldLogger
}

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
		if err != nil {
			return fmt.Errorf("enc socket %s: %w", l.Addr(), err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			if err := s.answer(ctx, conn); err != nil {
				s.Log.WithError(err).Debug("enc client gone")
			}
		})
	}
}

func (s *Server) answer(ctx context.Context, conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	line, err := bufio.NewReaderSize(conn, maxQuestion).ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line = []byte("\n") // no certname: refused as an empty one
	} else if err != nil {
		return fmt.Errorf("reading the question: %w", err)
	}
	name := string(line[:len(line)-1])
	a := enc.Ask(ctx, s.Source, s.Unknown, name)
	if a.Status == enc.StatusFail {
		s.Log.WithFields(logrus.Fields{"certname": name, "reason": a.Text}).Warn("enc refused a node")
	}
	_, err = conn.Write(fmt.Appendf(nil, "%c %08x\n%s", a.Status, len(a.Text), a.Text))
	return err
}
