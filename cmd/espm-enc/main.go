// Command espm-enc prints what espm says a node is, as YAML: Puppet Server's
// external node classifier.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"

	"github.com/espm-project/espm/internal/enc/encclient"
)

const usage = `Usage: espm-enc [--socket PATH] [--db PATH] CERTNAME

Prints the node's classification as YAML. Where it can't, the reason goes to
standard output and the exit code is 1. Ends within 2 seconds.

  --socket PATH  where the daemon answers (ESPM_ENC_SOCKET, or %s)
  --db PATH      the store, read where the daemon is down (ESPM_DB, or %s)

In puppet.conf:
  [server]
  node_terminus = exec
  external_nodes = /usr/bin/espm-enc
`

func main() {
	var c encclient.Client
	flags := flag.NewFlagSet("espm-enc", flag.ContinueOnError)
	flags.SetOutput(os.Stdout)
	flags.Usage = func() { fmt.Printf(usage, encclient.DefaultSocket, encclient.DefaultDB) }
	flags.StringVar(&c.Socket, "socket", cmp.Or(os.Getenv("ESPM_ENC_SOCKET"), encclient.DefaultSocket), "")
	flags.StringVar(&c.DB, "db", cmp.Or(os.Getenv("ESPM_DB"), encclient.DefaultDB), "")
	switch err := flags.Parse(os.Args[1:]); {
	case err == flag.ErrHelp:
		os.Exit(0)
	case err != nil:
		os.Exit(2)
	case flags.NArg() != 1:
		flags.Usage()
		os.Exit(2)
	}
	os.Exit(c.Run(flags.Arg(0), os.Stdout))
}
