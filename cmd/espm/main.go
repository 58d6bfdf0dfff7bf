// Command espm is the node lifecycle service for Puppet: the daemon and its
// admin command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/espm-project/espm/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
