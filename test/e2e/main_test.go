package e2e

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// What is ignored here stays ignored in a child, and SIGHUP is where nohup started the
// tests: a Puppet Server would never reload. What is handled is not inherited.
func TestMain(m *testing.M) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	os.Exit(m.Run())
}
