package auth

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/node"
)

// LocalPeer is the process that connected to a local socket, with its user and groups at the time of the connection.
type LocalPeer struct {
	PID    int32
	UID    uint32
	Groups []uint32 // the primary group, then the supplementary groups
}

// PeerOf asks the kernel which process connected to a local socket.
func PeerOf(conn syscall.Conn) (LocalPeer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return LocalPeer{}, err
	}
	var p LocalPeer
	var credErr error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr != nil {
			return
		}
		p = LocalPeer{PID: cred.Pid, UID: cred.Uid, Groups: []uint32{cred.Gid}}
		var more []uint32
		more, credErr = peerGroups(fd)
		p.Groups = append(p.Groups, more...)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return LocalPeer{}, fmt.Errorf("ask the kernel which process connected: %w", err)
	}
	return p, nil
}

// peerGroups reads the supplementary groups with SO_PEERGROUPS (Linux 4.13). SO_PEERCRED has no supplementary groups,
// and golang.org/x/sys has no function for SO_PEERGROUPS.
func peerGroups(fd uintptr) ([]uint32, error) {
	const most = 65536 // NGROUPS_MAX
	for size := 64; ; size = most {
		buf := make([]byte, 4*size)
		length := uint32(len(buf)) // #nosec G115 -- at most 4*most
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&length)), 0)
		if errno == unix.ERANGE && size < most {
			continue
		}
		if errno != 0 {
			return nil, errno
		}
		var groups []uint32
		for ; length >= 4; length -= 4 {
			groups = append(groups, binary.NativeEndian.Uint32(buf[length-4:]))
		}
		return groups, nil
	}
}

// Local is the rule for admins on this machine: root, the daemon's own user and the members of a group.
type Local struct {
	self  uint32
	group uint32
	named bool
}

// NewLocal returns the rule with the group of a name. The name "" stands for no group.
func NewLocal(group string) (Local, error) {
	l := Local{self: uint32(os.Geteuid())} // #nosec G115 -- a user id has 32 bits
	if group == "" {
		return l, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return l, err
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return l, fmt.Errorf("group %s has the id %q", group, g.Gid)
	}
	l.group, l.named = uint32(id), true
	return l, nil
}

// Caller returns the caller for a process on this machine. Only an admin has a role.
func (l Local) Caller(p LocalPeer) node.Caller {
	c := node.Caller{Name: "local:" + userName(p.UID), Peer: fmt.Sprintf("process %d of user %d", p.PID, p.UID), Local: true}
	if p.UID == 0 || p.UID == l.self || l.named && slices.Contains(p.Groups, l.group) {
		c.Role = node.Admin
	}
	return c
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid-" + id
}
