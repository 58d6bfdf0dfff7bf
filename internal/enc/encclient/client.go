// Package encclient is espm-enc: it asks the daemon what a node is, or reads
// the store itself where the daemon is down. Puppet Server starts it for every
// catalog, so it speaks to the socket by system calls: linking package
// net alone would add a fifth to its run time.
package encclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// Where the daemon's socket and its store are by default.
const (
	DefaultSocket = "/run/espm/enc.sock"
	DefaultDB     = "/var/lib/espm/espm.db"
)

// Deadline bounds everything espm-enc does. Puppet Server has no timeout of
// its own: a hanging ENC holds one of its JRuby instances.
const Deadline = 2 * time.Second

// retryPause is how long to wait when neither the daemon nor the store can be
// had: it is starting or stopping just now.
const retryPause = 20 * time.Millisecond

// Client knows where to ask.
type Client struct {
	Socket string
	DB     string

	// Inspect is for a person who looks, not for a catalog: the node does not count as seen, and
	// the answer hides sensitive values, unless Reveal is set.
	Inspect bool
	Reveal  bool

	Deadline time.Duration // of everything; zero: Deadline
}

// errDown: nobody answers on the socket.
var errDown = errors.New("espm is not running")

// Ask returns what espm says about a name: the daemon's word, or where it is
// down what the store says. It ends by the deadline.
func (c Client) Ask(name string, deadline time.Time) enc.Answer {
	// The daemon would refuse it too, but could not read one that is longer than its buffer.
	if _, err := node.ParseCertname(name); err != nil {
		return fail(err.Error())
	}
	var locked string // why neither could answer, when both were asked last
	for {
		a, err := c.askDaemon(name, deadline)
		if err == nil {
			return a
		}
		if errors.Is(err, errLate) && locked != "" {
			return fail(locked)
		}
		if !errors.Is(err, errDown) {
			return fail(err.Error())
		}
		a, dbErr := c.askStore(name, deadline)
		if dbErr == nil {
			return a
		}
		if !errors.Is(dbErr, bolt.ErrLocked) {
			return fail(fmt.Sprintf("%v, and its store can't be read: %v", err, dbErr))
		}
		locked = fmt.Sprintf("%v, but something holds its store: %v", err, dbErr)
		time.Sleep(min(retryPause, time.Until(deadline)))
	}
}

func (c Client) limit() time.Duration { return cmp.Or(c.Deadline, Deadline) }

func fail(reason string) enc.Answer {
	return enc.Answer{Status: enc.StatusFail, Text: "espm: " + strings.ReplaceAll(reason, "\n", " ")}
}

// askStore reads the store itself; bolt.ErrLocked while the daemon holds it.
func (c Client) askStore(name string, deadline time.Time) (enc.Answer, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	r, err := bolt.OpenReader(c.DB, retryPause)
	if errors.Is(err, fs.ErrNotExist) {
		return enc.Answer{}, fmt.Errorf("%s does not exist (--db, ESPM_DB)", c.DB)
	}
	if err != nil {
		return enc.Answer{}, err
	}
	defer r.Close()
	view, err := store.NewView(ctx, r)
	if err != nil {
		return enc.Answer{}, err
	}
	settings, err := view.ENC(ctx)
	if err != nil {
		return enc.Answer{}, fmt.Errorf("the ENC's settings: %w", err)
	}
	a, _ := enc.Ask(ctx, view, enc.Unknown{Policy: settings.UnknownNodes, Command: settings.Command}, name, c.Inspect && !c.Reveal)
	return a, nil
}

// askDaemon asks on the socket; errDown where nobody answers there.
func (c Client) askDaemon(name string, deadline time.Time) (enc.Answer, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return enc.Answer{}, fmt.Errorf("socket: %w", err)
	}
	defer syscall.Close(fd)
	k := conn{fd, deadline}
	if err := k.connect(c.Socket); err != nil {
		return enc.Answer{}, c.explain(err)
	}
	question := name + "\n"
	switch {
	case c.Inspect && c.Reveal:
		question = "!" + question
	case c.Inspect:
		question = "?" + question
	}
	if err := k.send(question); err != nil {
		return enc.Answer{}, c.explain(err)
	}
	a, err := k.receive()
	if err != nil {
		return enc.Answer{}, c.explain(err)
	}
	return a, nil
}

func (c Client) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EPIPE), errors.Is(err, errCut):
		return fmt.Errorf("%w (%s: %w)", errDown, c.Socket, err)
	case errors.Is(err, errLate):
		return fmt.Errorf("asking the daemon at %s: %w of %v", c.Socket, err, c.limit())
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("the daemon at %s did not answer within %v", c.Socket, c.limit())
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: %w: this user must be in the group set as enc.group", c.Socket, err)
	default:
		return fmt.Errorf("%s: %w", c.Socket, err)
	}
}
