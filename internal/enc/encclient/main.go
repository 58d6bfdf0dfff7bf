package encclient

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/espm-project/espm/internal/version"
)

const usage = `Usage: espm-enc [--socket PATH] [--db PATH] CERTNAME
       espm-enc --version

Prints the node's classification as YAML. On failure it prints the reason to
standard output and exits with code 1. It ends within 2 seconds.

  --socket PATH  the daemon's socket (ESPM_ENC_SOCKET, or %s)
  --db PATH      the store, read if the daemon is down (ESPM_DB, or %s)

In puppet.conf:
  [server]
  node_terminus = exec
  external_nodes = /usr/bin/espm-enc
`

// Main runs the command line of espm-enc and returns its exit code: 0; 1 if it has no classification; 2 for wrong
// usage.
func Main(args []string, stdout io.Writer) int {
	var c Client
	flags := flag.NewFlagSet("espm-enc", flag.ContinueOnError)
	flags.SetOutput(stdout) // Puppet Server reports standard output
	flags.Usage = func() { fmt.Fprintf(stdout, usage, DefaultSocket, DefaultDB) }
	flags.StringVar(&c.Socket, "socket", cmp.Or(os.Getenv("ESPM_ENC_SOCKET"), DefaultSocket), "")
	flags.StringVar(&c.DB, "db", cmp.Or(os.Getenv("ESPM_DB"), DefaultDB), "")
	which := flags.Bool("version", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case *which && flags.NArg() == 0:
		fmt.Fprintf(stdout, "espm-enc version %s\n", version.Read())
		return 0
	case flags.NArg() != 1 || *which:
		flags.Usage()
		return 2
	}
	return c.Run(flags.Arg(0), stdout)
}
