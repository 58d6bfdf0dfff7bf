package doctor

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/version"
)

// checkVersion compares the programs of one package: this one, espm-enc, and the one that the daemon runs. The daemon
// runs an older program after an upgrade without a restart.
func checkVersion(ctx context.Context, h *Host) []Finding {
	own := version.Read()
	words := strings.Fields(h.encWords())
	all := h.checkENCVersion(ctx, words[0], own)
	if path, local := strings.CutPrefix(h.Config.Listen, "unix://"); local {
		all = append(all, checkRunning(ctx, path)...)
	}
	return good(all, "%s", own)
}

func (h *Host) checkENCVersion(ctx context.Context, program string, own version.Info) []Finding {
	if !executable(program) {
		return nil // another check reports that
	}
	ctx, cancel := context.WithTimeout(ctx, 2*encLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	var err error
	if cmd.SysProcAttr, _, err = h.asPuppet(); err != nil {
		return nil // another check reports that
	}
	out, err := cmd.Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	said, ok := strings.CutPrefix(line, "espm-enc version ")
	switch {
	case err != nil || !ok:
		return []Finding{found(Warning, "", "%s can't say which version it is, and espm is %s: install both from one package", program, own)}
	case said != own.String():
		return []Finding{found(Warning, "", "%s is %s, and espm is %s: install both from one package", program, said, own)}
	}
	return nil
}

// checkRunning finds a daemon that runs another program than this one. It finds nothing if that can't be read; only root
// can read it.
func checkRunning(ctx context.Context, socket string) []Finding {
	pid, err := listener(ctx, socket)
	if err != nil {
		return nil // another check reports that
	}
	path, err := os.Executable()
	if err != nil {
		return nil
	}
	running := fmt.Sprintf("/proc/%d/exe", pid)
	if same, err := sameProgram(path, running); err != nil || same {
		return nil
	}
	from, _ := os.Readlink(running)
	return []Finding{found(Warning, "systemctl restart espm", "the daemon (process %d) runs another program than %s: %s", pid, path, from)}
}

// listener is the process that made the socket.
func listener(ctx context.Context, socket string) (pid int32, err error) {
	conn, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	peer, err := auth.PeerOf(conn.(*net.UnixConn))
	if err == nil && peer.PID == 0 {
		err = errors.New("it is in another namespace")
	}
	return peer.PID, err
}

// sameProgram reports whether two paths are the same file, or files with the same content.
func sameProgram(a, b string) (bool, error) {
	infoA, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	infoB, err := os.Stat(b)
	if err != nil || os.SameFile(infoA, infoB) {
		return err == nil, err
	}
	sumA, errA := sum(a)
	sumB, errB := sum(b)
	return sumA == sumB, errors.Join(errA, errB)
}

func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	_, err = io.Copy(hash, f)
	return string(hash.Sum(nil)), err
}
