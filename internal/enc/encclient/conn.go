package encclient

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/espm-project/espm/internal/enc"
)

// errCut says that the daemon closed the connection before the end of its answer.
var errCut = errors.New("the answer was cut short")

// errLate says that the deadline passed before the daemon was asked. It says nothing about the daemon.
var errLate = errors.New("nothing was left of the time limit")

// conn is a connected unix socket. Each call returns by the deadline, with EAGAIN: the kernel's error for
// SO_RCVTIMEO and SO_SNDTIMEO.
type conn struct {
	fd       int
	deadline time.Time
}

func (k conn) limit(option int) error {
	left := time.Until(k.deadline)
	if left <= 0 {
		return syscall.EAGAIN
	}
	tv := syscall.NsecToTimeval(max(left, time.Microsecond).Nanoseconds())
	return syscall.SetsockoptTimeval(k.fd, syscall.SOL_SOCKET, option, &tv)
}

func (k conn) connect(path string) error {
	if time.Until(k.deadline) <= 0 {
		return errLate
	}
	if err := k.limit(syscall.SO_SNDTIMEO); err != nil {
		return err
	}
	return uninterrupted(func() error { return syscall.Connect(k.fd, &syscall.SockaddrUnix{Name: path}) })
}

// send writes a question in one call: it is smaller than the socket's buffer.
func (k conn) send(s string) error {
	return uninterrupted(func() error {
		return syscall.Sendto(k.fd, []byte(s), syscall.MSG_NOSIGNAL, nil)
	})
}

// header is a status byte, a space, eight hexadecimal digits and a newline.
const header = 11

func (k conn) receive() (enc.Answer, error) {
	buf := make([]byte, 0, 8192)
	want := header
	for len(buf) < want {
		var err error
		if buf, err = k.read(buf); err != nil {
			return enc.Answer{}, err
		}
		if want == header && len(buf) >= header {
			size, err := parseHeader(buf[:header])
			if err != nil {
				return enc.Answer{}, err
			}
			want += size
		}
	}
	return enc.Answer{Status: enc.Status(buf[0]), Text: string(buf[header:want])}, nil
}

// parseHeader returns the length of the text after the header.
func parseHeader(b []byte) (int, error) {
	size, err := strconv.ParseUint(string(b[2:header-1]), 16, 31)
	known := enc.Status(b[0]) == enc.StatusYAML || enc.Status(b[0]) == enc.StatusFail || enc.Status(b[0]) == enc.StatusCommand
	if err != nil || !known || b[1] != ' ' || b[header-1] != '\n' {
		return 0, fmt.Errorf("not an answer: %q", b)
	}
	return int(size), nil
}

// read reads once, and appends to buf.
func (k conn) read(buf []byte) ([]byte, error) {
	if len(buf) == cap(buf) {
		buf = slices.Grow(buf, 3*cap(buf))
	}
	if err := k.limit(syscall.SO_RCVTIMEO); err != nil {
		return buf, err
	}
	var n int
	err := uninterrupted(func() (err error) {
		n, err = syscall.Read(k.fd, buf[len(buf):cap(buf)])
		return err
	})
	if err == nil && n == 0 {
		err = errCut
	}
	return buf[:len(buf)+max(n, 0)], err
}

// uninterrupted repeats a call that a signal interrupted. The Go runtime sends signals to itself.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
