// What the runtime would do at every start, for processes that live longer: look
// up the CPU limit of the control group, watch it, and name its memory mappings.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0

// Command espm-enc prints what espm says a node is, as YAML: Puppet Server's
// external node classifier.
package main

import (
	"os"

	"github.com/espm-project/espm/internal/enc/encclient"
)

func main() {
	os.Exit(encclient.Main(os.Args[1:], os.Stdout))
}
