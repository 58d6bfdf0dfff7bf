package encclient

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/espm-project/espm/internal/enc"
)

// maxOutput is the most that Puppet reads from an ENC, in bytes: its limit is in characters of up to 4 bytes.
const maxOutput = 4 * 3_145_728

// Run prints a node's YAML and returns the exit code. On failure it prints the reason to stdout, in one line, as
// Puppet Server reports stdout. It writes nothing to stderr, which Puppet Server logs as a warning.
func (c Client) Run(name string, stdout io.Writer) int {
	deadline := time.Now().Add(c.limit())
	a := c.Ask(name, deadline)
	if a.Status == enc.StatusCommand {
		a = c.runCommand(a.Text, name, deadline)
	}
	text := a.Text
	if a.Status != enc.StatusYAML {
		text += "\n"
	}
	if _, err := io.WriteString(stdout, text); err != nil || a.Status != enc.StatusYAML {
		return 1
	}
	return 0
}

// runCommand asks another ENC. It calls it as Puppet does: the command is split at white space, and the certname is
// the last argument. At the deadline it kills the command and its children.
func (c Client) runCommand(command, name string, deadline time.Time) enc.Answer {
	args := append(strings.Fields(command), name)
	out, in, err := os.Pipe()
	if err != nil {
		return fail(err.Error())
	}
	defer out.Close()
	null, err := os.Open(os.DevNull) // standard input is empty, as with Puppet
	if err != nil {
		return fail(err.Error())
	}
	defer null.Close()
	p, err := os.StartProcess(args[0], args, &os.ProcAttr{
		Files: []*os.File{null, in, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	in.Close()
	if err != nil {
		return fail(fmt.Sprintf("node %q is unknown to espm and the other ENC can't be started: %v", name, err))
	}
	killer := time.AfterFunc(time.Until(deadline), func() { syscall.Kill(-p.Pid, syscall.SIGKILL) })
	defer killer.Stop()
	// A child that left the process group survives the kill and keeps the pipe open: the read needs a deadline.
	if err := out.SetReadDeadline(deadline); err != nil {
		return fail(err.Error())
	}
	var text bytes.Buffer
	_, readErr := io.Copy(&text, io.LimitReader(out, maxOutput))
	state, waitErr := p.Wait()
	switch {
	case time.Now().After(deadline):
		return fail(fmt.Sprintf("node %q is unknown to espm and the other ENC, %s, did not answer within %v", name, args[0], c.limit()))
	case errors.Join(readErr, waitErr) != nil:
		return fail(fmt.Sprintf("%s: %v", args[0], errors.Join(readErr, waitErr)))
	case !state.Success() && len(bytes.TrimSpace(text.Bytes())) == 0:
		return fail(fmt.Sprintf("node %q is unknown to espm and the other ENC, %s, failed without a reason: %v", name, args[0], state))
	case !state.Success():
		return enc.Answer{Status: enc.StatusFail, Text: strings.TrimRight(text.String(), "\n")}
	default:
		return enc.Answer{Status: enc.StatusYAML, Text: text.String()}
	}
}
