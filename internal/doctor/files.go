package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/shell"
)

const start = "systemctl start espm"

// checkMode checks a file's mode and, if a group is given, its group.
func checkMode(path string, mode fs.FileMode, group string) []Finding {
	info, err := os.Stat(path)
	if err != nil {
		return []Finding{found(Failure, "", "%v", err)}
	}
	var all []Finding
	if have := info.Mode().Perm(); have != mode {
		bad := Warning
		if have&^mode&0o007 != 0 || have&mode != mode {
			bad = Failure // others may open it, or the group that must can't
		}
		all = append(all, found(bad, fmt.Sprintf("chmod %04o %s", mode, shell.Quote(path)), "%s has mode %04o instead of %04o", path, have, mode))
	}
	if group == "" {
		return all
	}
	stat, _ := info.Sys().(*syscall.Stat_t)
	want, err := user.LookupGroup(group)
	switch {
	case err != nil:
		all = append(all, found(Failure, "", "enc.group: %v; the configuration must name a group of this host", err))
	case stat != nil && want.Gid != strconv.Itoa(int(stat.Gid)):
		all = append(all, found(Failure, fmt.Sprintf("chgrp %s %s", shell.Quote(group), shell.Quote(path)), "%s has not the group %s, of enc.group", path, group))
	}
	return all
}

func checkStore(_ context.Context, h *Host) []Finding {
	path := h.Config.Store.Path
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return []Finding{found(Failure, start, "the store %s is not there; the daemon makes it", path)}
	}
	return good(checkMode(path, 0o640, h.Config.ENC.Group), "%s", path)
}

// The space that a disk must have free. Without it the daemon still serves reads, but can change nothing.
const (
	lowBytes  = 256 << 20
	fullBytes = 32 << 20
	lowInodes = 1000
)

func checkDisk(_ context.Context, h *Host) []Finding {
	dirs := []string{filepath.Dir(h.Config.Store.Path)}
	if d := h.Config.Authority.Directory; d != nil {
		dirs = append(dirs, d.Path)
	}
	var all []Finding
	for _, dir := range dirs {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			all = append(all, found(Failure, "", "%s: %v", dir, err))
			continue
		}
		free := int64(s.Bavail) * s.Bsize // #nosec G115 -- no disk has 2^63 bytes
		look := "du -xh --max-depth=2 " + shell.Quote(dir) + " | sort -h | tail"
		switch {
		case free < fullBytes:
			all = append(all, found(Failure, look, "%s has %d MiB free", dir, free>>20))
		case free < lowBytes:
			all = append(all, found(Warning, look, "%s has %d MiB free", dir, free>>20))
		case s.Files > 0 && s.Ffree < lowInodes: // some file systems count none
			all = append(all, found(Warning, look, "%s has room for %d more files", dir, s.Ffree))
		}
	}
	return good(all, "there is room in %s", strings.Join(dirs, " and "))
}

func checkCAKey(_ context.Context, h *Host) []Finding {
	d := h.Config.Authority.Directory
	if d == nil {
		return []Finding{found(OK, "", "Puppet Server has it")}
	}
	path := filepath.Join(d.Path, "ca_key.pem")
	if d.Key != "" {
		return checkToken(h, path)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return []Finding{found(Failure, "", "%v", err)}
	case info.Mode().Perm()&0o007 != 0:
		return []Finding{found(Failure, "chmod o-rwx "+shell.Quote(path), "%s is open to everybody (mode %04o); the daemon refuses it", path, info.Mode().Perm())}
	}
	return []Finding{found(OK, "", "%s", path)}
}

// checkToken checks the token's key, and that no key file is left beside it: the token replaces that file.
func checkToken(h *Host, file string) []Finding {
	var all []Finding
	if _, err := os.Lstat(file); err == nil {
		all = append(all, found(Warning, "", "a token has the CA's key, but %s is there too: take it off this machine", file))
	}
	switch err := h.Token(); {
	case errors.Is(err, ErrNoTokens):
		all = append(all, found(Warning, "", "a token has it; %v", err))
	case err != nil:
		all = append(all, found(Failure, "", "%v", err))
	}
	return good(all, "a token has it, and it is the CA's")
}

func checkDaemon(ctx context.Context, h *Host) []Finding {
	path, local := strings.CutPrefix(h.Config.Listen, "unix://")
	if !local {
		return []Finding{found(OK, "", "the API is not on a local socket")}
	}
	if err := dial(ctx, path); err != nil {
		return []Finding{found(Failure, start, "the daemon does not answer: %v", err)}
	}
	return good(checkMode(path, 0o660, ""), "it answers at %s", path)
}

// checkRevocations lists the certificates that the CA can't revoke. Pending revocations are in the metrics.
func checkRevocations(ctx context.Context, h *Host) []Finding {
	path, local := strings.CutPrefix(h.Config.Listen, "unix://")
	if !local || dial(ctx, path) != nil {
		return []Finding{found(OK, "", "not looked at, as no daemon answers on a local socket")}
	}
	unrevoked, err := h.Unrevoked(ctx)
	if err != nil {
		return []Finding{found(Warning, "", "the daemon can't be asked for its revocations: %v", err)}
	}
	var all []Finding
	for _, u := range unrevoked {
		all = append(all, found(Warning, "", "serial %s of %s was to be revoked, which the CA can't: it is valid until %s. "+
			"The reason: espm cert revocations --impossible --certname %s", u.Serial, u.Certname, u.NotAfter.UTC().Format(time.RFC3339), u.Certname))
	}
	return good(all, "none is impossible")
}

func checkENCSocket(ctx context.Context, h *Host) []Finding {
	if err := dial(ctx, h.Config.ENC.Socket); err != nil {
		return []Finding{found(Failure, start, "the ENC socket does not answer: %v; catalogs compile from the store", err)}
	}
	return good(checkMode(h.Config.ENC.Socket, 0o660, h.Config.ENC.Group), "it answers at %s", h.Config.ENC.Socket)
}

func dial(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

// checkGroup checks that Puppet's user is in the group that may use the ENC socket.
func checkGroup(_ context.Context, h *Host) []Finding {
	group := h.Config.ENC.Group
	if h.settings == nil {
		return h.noSettings()
	}
	u, err := user.Lookup(h.settings["user"])
	if err != nil {
		return []Finding{found(Failure, "", "Puppet's user: %v", err)}
	}
	if group == "" {
		if u.Uid == strconv.Itoa(os.Geteuid()) {
			return []Finding{found(OK, "", "Puppet's user runs espm")}
		}
		return []Finding{found(Failure, fmt.Sprintf("printf 'enc:\\n  group: %s\\n'", h.settings["group"]),
			"enc.group is not set, so %s can't ask espm: add what the command prints to %s, or its group line to the enc there", u.Username, h.Config.File)}
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return []Finding{found(Failure, "", "enc.group: %v", err)}
	}
	ids, err := u.GroupIds()
	if err != nil || !slices.Contains(ids, g.Gid) {
		return []Finding{found(Failure, fmt.Sprintf("usermod -a -G %s %s && systemctl restart puppetserver", shell.Quote(group), shell.Quote(u.Username)),
			"%s is not in the group %s, of enc.group", u.Username, group)}
	}
	if lacks := ownerLacks(h.Config.Store.Path, g.Gid); lacks != "" {
		return []Finding{found(Failure, fmt.Sprintf("usermod -a -G %s %s && systemctl restart espm", shell.Quote(group), shell.Quote(lacks)),
			"%s, whose the store is, is not in the group %s, of enc.group, and so can't give it the socket", lacks, group)}
	}
	return []Finding{found(OK, "", "%s is in %s", u.Username, group)}
}

// ownerLacks returns the owner of a file, as which the daemon runs, if that user is neither root nor in the group.
// Otherwise, or if the groups are unknown, it returns the empty string.
func ownerLacks(path, gid string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "" // another check reports that
	}
	uid := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid))
	owner, err := user.LookupId(uid)
	if err != nil || uid == "0" {
		return ""
	}
	if ids, err := owner.GroupIds(); err != nil || slices.Contains(ids, gid) {
		return ""
	}
	return owner.Username
}

// checkHostCRL checks Puppet Server's copy of the CRL. If espm is the CA, Puppet Server reads that copy.
func checkHostCRL(_ context.Context, h *Host) []Finding {
	d := h.Config.Authority.Directory
	if d == nil {
		return []Finding{found(OK, "", "Puppet Server keeps it")}
	}
	own, err := os.ReadFile(filepath.Join(d.Path, "ca_crl.pem"))
	if err != nil {
		return []Finding{found(Failure, "", "%v", err)}
	}
	var all []Finding
	for _, path := range d.Publish {
		copied, err := os.ReadFile(path)
		switch {
		case err != nil:
			all = append(all, found(Failure, start, "%v; the daemon writes it within a minute", err))
		case !bytes.Equal(own, copied):
			all = append(all, found(Failure, start, "%s is not the CRL of %s: who was revoked since is let in. The daemon writes it within a minute, or logs why it can't", path, d.Path))
		case !readable(path, h.settings["user"]):
			all = append(all, found(Failure, "chmod o+r "+shell.Quote(path), "%s can't be read by %s", path, h.settings["user"]))
		}
	}
	written := slices.ContainsFunc(append([]string{filepath.Join(d.Path, "ca_crl.pem")}, d.Publish...), func(path string) bool {
		return realPath(path) == realPath(h.settings["hostcrl"])
	})
	if want := h.settings["hostcrl"]; want != "" && !written {
		all = append(all, found(Failure, "", "Puppet Server reads its CRL from %s, which authority.directory.publish in %s does not list: add it there and restart espm", want, h.Config.File))
	}
	return good(all, "%d copies of the CRL are as they should be", len(d.Publish))
}

// realPath returns a path without symbolic links. If there is no such file, it returns the path.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// readable reports whether the mode bits of a file let a user read it. It does not check the folders.
func readable(path, name string) bool {
	info, err := os.Stat(path)
	u, lookup := user.Lookup(name)
	if err != nil || lookup != nil || u.Uid == "0" {
		return err == nil
	}
	stat, _ := info.Sys().(*syscall.Stat_t)
	ids, _ := u.GroupIds()
	switch mode := info.Mode().Perm(); {
	case strconv.Itoa(int(stat.Uid)) == u.Uid:
		return mode&0o400 != 0
	case slices.Contains(ids, strconv.Itoa(int(stat.Gid))):
		return mode&0o040 != 0
	default:
		return mode&0o004 != 0
	}
}
