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

// The default paths of the daemon's socket and store.
const (
	DefaultSocket = "/run/espm/enc.sock"
	DefaultDB     = "/var/lib/espm/espm.db"
)

// Deadline bounds the whole run of espm-enc. Puppet Server has no timeout for an ENC: one that hangs blocks one of
// its JRuby instances.
const Deadline = 2 * time.Second

// retryPause is the pause before a retry if the daemon does not answer and the store is locked: the daemon is
// starting or stopping.
const retryPause = 20 * time.Millisecond

// Client asks the daemon, or reads the store if the daemon is down.
type Client struct {
	Socket string
	DB     string

	// Inspect marks a question of a person, not for a catalog: it is no look-up of an agent, so it does not change
	// when the node was last seen. The answer has no sensitive values, unless Reveal is set.
	Inspect bool
	Reveal  bool

	Deadline time.Duration // bounds the whole run; default Deadline
}

// errDown says that no daemon answers on the socket.
var errDown = errors.New("espm is not running")

// Ask returns espm's answer for a name: the daemon's or, if the daemon is down, one from the store. It returns
// before the deadline.
func (c Client) Ask(name string, deadline time.Time) enc.Answer {
	// Checked here, as the daemon can't read a name that is longer than its buffer.
	if _, err := node.ParseCertname(name); err != nil {
		return fail(err.Error())
	}
	var locked string // the reason of the last try, in which the daemon was down and the store locked
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
		locked = fmt.Sprintf("%v, but another process has locked its store: %v", err, dbErr)
		time.Sleep(min(retryPause, time.Until(deadline)))
	}
}

func (c Client) limit() time.Duration { return cmp.Or(c.Deadline, Deadline) }

func fail(reason string) enc.Answer {
	return enc.Answer{Status: enc.StatusFail, Text: "espm: " + strings.ReplaceAll(reason, "\n", " ")}
}

// askStore answers from the store. Error: bolt.ErrLocked while another process has the store open.
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
		return enc.Answer{}, fmt.Errorf("read the ENC's settings: %w", err)
	}
	a, _ := enc.Ask(ctx, view, enc.Unknown{Policy: settings.UnknownNodes, Command: settings.Command}, name, c.Inspect && !c.Reveal)
	return a, nil
}

// askDaemon asks on the socket. Error: errDown if no daemon answers.
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
		return fmt.Errorf("ask the daemon at %s: %w of %v", c.Socket, err, c.limit())
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("the daemon at %s did not answer within %v", c.Socket, c.limit())
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: %w: add this user to the group that enc.group names", c.Socket, err)
	default:
		return fmt.Errorf("%s: %w", c.Socket, err)
	}
}
