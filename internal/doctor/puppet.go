package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/shell"
)

// The default paths of espm-enc; see its --help.
const (
	encSocket = "/run/espm/enc.sock"
	encStore  = "/var/lib/espm/espm.db"
)

// ENCCommand returns the command that puppet.conf must name: the espm-enc beside this espm, with the paths that are not
// its defaults.
func ENCCommand(socket, store string) string {
	command := "/usr/bin/espm-enc"
	if path, err := os.Executable(); err == nil {
		command = filepath.Join(filepath.Dir(path), "espm-enc")
	}
	if socket != encSocket {
		command += " --socket " + socket
	}
	if store != encStore {
		command += " --db " + store
	}
	return command
}

func (h *Host) encCommand() string { return ENCCommand(h.Config.ENC.Socket, h.Config.Store.Path) }

func checkPuppetConf(_ context.Context, h *Host) []Finding {
	if h.settings == nil {
		return h.noSettings()
	}
	const restart = " && systemctl restart puppetserver"
	set := func(name, value string) string {
		return fmt.Sprintf("puppet config set --section server %s %s%s", name, shell.Quote(value), restart)
	}
	var all []Finding
	if have := h.settings["node_terminus"]; have != "exec" {
		all = append(all, found(Failure, set("node_terminus", "exec"), "node_terminus is %q in %s: Puppet Server asks no ENC", have, h.settings["config"]))
	}
	words := strings.Fields(h.settings["external_nodes"])
	switch {
	case len(words) == 0 || filepath.Base(words[0]) != "espm-enc":
		all = append(all, found(Failure, set("external_nodes", h.encCommand()), "external_nodes is %q in %s: Puppet Server does not ask espm", h.settings["external_nodes"], h.settings["config"]))
	case !executable(words[0]):
		all = append(all, found(Failure, set("external_nodes", h.encCommand()), "external_nodes names %s, which is no program", words[0]))
	}
	return good(all, "%s asks espm-enc", h.settings["config"])
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// encLimit is the longest acceptable time of an ENC; espm-enc itself ends earlier.
const encLimit = 2 * time.Second

// checkENC runs the ENC as Puppet Server does.
func checkENC(ctx context.Context, h *Host) []Finding {
	words := strings.Fields(h.encWords())
	name := h.Config.Puppet.Server
	if !executable(words[0]) {
		return []Finding{found(Failure, "", "%s is no program: espm-enc belongs beside espm", words[0])}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*encLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], name)...) // #nosec G204 -- what Puppet Server runs, as its user
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	attr, as, err := h.asPuppet()
	if err != nil {
		return []Finding{found(Failure, "", "Puppet's user: %v", err)}
	}
	cmd.SysProcAttr = attr
	begun := time.Now()
	out, err := cmd.Output()
	took := time.Since(begun)
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	again := fmt.Sprintf("runuser -u %s -- %s %s", h.settings["user"], strings.Join(words, " "), name)
	exit, _ := errors.AsType[*exec.ExitError](err)
	answered := err == nil || exit != nil && strings.Contains(line, "is not registered")
	switch {
	case ctx.Err() != nil || took > encLimit:
		return []Finding{found(Failure, "", "espm-enc took %v as %s; Puppet Server waits for it with each catalog", took.Round(time.Millisecond), as)}
	case !answered && line != "":
		return []Finding{found(Failure, "", "espm-enc fails as %s: %s; to try again: %s", as, line, again)}
	case !answered:
		return []Finding{found(Failure, "", "espm-enc fails as %s: %v; to try again: %s", as, err, again)}
	}
	return []Finding{found(OK, "", "it answers as %s, in %v", as, took.Round(time.Millisecond))}
}

// encWords returns the command that puppet.conf names, with its arguments. If it names none, encWords returns the one
// that it must name.
func (h *Host) encWords() string {
	command := h.settings["external_nodes"]
	if words := strings.Fields(command); len(words) > 0 && filepath.Base(words[0]) == "espm-enc" {
		return command
	}
	return h.encCommand()
}

// asPuppet makes a command run as Puppet's user, which only root may, and returns the user's name.
func (h *Host) asPuppet() (*syscall.SysProcAttr, string, error) {
	who := h.settings["user"]
	if who == "" || os.Geteuid() != 0 {
		return nil, "this user", nil
	}
	credential, err := credentialOf(who)
	return &syscall.SysProcAttr{Credential: credential}, who, err
}

func credentialOf(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	number := func(s string) uint32 {
		n, _ := strconv.ParseUint(s, 10, 32) // of the system's own
		return uint32(n)
	}
	c := &syscall.Credential{Uid: number(u.Uid), Gid: number(u.Gid)}
	for _, id := range ids {
		c.Groups = append(c.Groups, number(id))
	}
	return c, nil
}

// The times before an expiry from which on it is a finding.
const (
	caSoon   = 90 * 24 * time.Hour
	crlSoon  = 12 * time.Hour
	apart    = time.Minute
	farApart = time.Hour // certificates are backdated by a day, CRLs by a second
)

func checkAuthority(ctx context.Context, h *Host) []Finding {
	c, err := h.CA(ctx)
	if err != nil {
		mend := ""
		if errors.Is(err, node.ErrUnavailable) {
			mend = "systemctl start puppetserver"
		}
		return []Finding{found(Failure, mend, "%v", err)}
	}
	now := h.Now()
	var all []Finding
	for _, p := range c.Problems {
		all = append(all, found(Failure, p.Mend, "%s", p.What))
	}
	switch left := c.NotAfter.Sub(now); {
	case c.NotAfter.IsZero():
	case now.Before(c.NotBefore):
		all = append(all, found(Failure, "timedatectl set-ntp true", "the certificate of %s is not valid before %s: is this host's clock right?",
			c.Subject, c.NotBefore.Format(time.RFC3339)))
	case left <= 0:
		all = append(all, found(Failure, "", "the certificate of %s ended %s: no agent trusts anything any more; the CA needs a new one", c.Subject, c.NotAfter.Format(time.RFC3339)))
	case left < caSoon:
		all = append(all, found(Warning, "", "the certificate of %s ends %s: the CA and every agent need a new one before", c.Subject, c.NotAfter.Format(time.RFC3339)))
	}
	for _, crl := range c.CRLs {
		all = append(all, checkCRL(h, c, crl)...)
	}
	if !c.Clock.IsZero() {
		off := now.Sub(c.Clock).Abs()
		if off > apart {
			bad := Warning
			if off > farApart {
				bad = Failure
			}
			all = append(all, found(bad, "timedatectl set-ntp true", "this host's clock and Puppet Server's are %v apart", off.Round(time.Second)))
		}
	}
	what := c.Subject + " until " + c.NotAfter.Format(time.DateOnly)
	if c.Version != "" {
		what += ", Puppet Server's CA " + c.Version
	}
	return good(all, "%s", what)
}

func checkCRL(h *Host, c CA, crl CRL) []Finding {
	now := h.Now()
	if crl.ThisUpdate.Sub(now) > apart {
		return []Finding{found(Failure, "timedatectl set-ntp true", "the CRL of %s is signed at %s, which is still to come: is this host's clock right?", crl.Issuer, crl.ThisUpdate.Format(time.RFC3339))}
	}
	if crl.NextUpdate.IsZero() || crl.NextUpdate.Sub(now) > crlSoon {
		return nil
	}
	bad, verb := Warning, "runs out"
	if !now.Before(crl.NextUpdate) {
		bad, verb = Failure, "ran out"
	}
	if crl.Issuer == c.Subject && c.Version == "" {
		return []Finding{found(bad, start, "the CRL of %s %s %s; the daemon signs a new one when it starts", crl.Issuer, verb, crl.NextUpdate.Format(time.RFC3339))}
	}
	return []Finding{found(bad, "", "the CRL of %s %s %s, and espm can't sign it: whoever has its key must", crl.Issuer, verb, crl.NextUpdate.Format(time.RFC3339))}
}
