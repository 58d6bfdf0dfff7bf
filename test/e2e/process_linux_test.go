package e2e

import "syscall"

// ownGroup puts a child into its own process group, and has it killed should
// the test binary die without cleaning up (a panic, a test timeout).
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// asUser is ownGroup as another user, without supplementary groups.
func asUser(uid, gid int) *syscall.SysProcAttr {
	attr := ownGroup()
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attr
}
