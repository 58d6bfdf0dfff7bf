//go:build !linux

package e2e

import "syscall"

// The suite compiles everywhere and runs on Linux only: see havePuppet.

func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func asUser(int, int) *syscall.SysProcAttr { panic("linux only") }
