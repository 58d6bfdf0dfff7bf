// Command bench compares espm with other programs. The programs run in turns in the same run, so that a
// busy machine slows all of them. The goals are ratios; the absolute times are only for information.
//
// `make bench` builds bin/espm and bin/espm-enc, and runs bench.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// options are the command line flags.
type options struct {
	bin    string
	base   string
	nodes  int
	rounds int
	only   string
	sample int
	churn  time.Duration
}

var benchmarks = []struct {
	name string
	run  func(ctx context.Context, l lab, o options) error
}{
	{"enc", benchENC},
	{"register", benchRegister},
	{"audit", benchAudit},
	{"presign", benchPresign},
	{"terminate", benchTerminate},
	{"revoke", benchRevoke},
	{"crl", benchCRL},
	{"connections", benchConnections},
	{"groups", benchGroups},
	{"churn", benchChurn},
	{"base", benchBase},
}

func names() (all []string) {
	for _, b := range benchmarks {
		all = append(all, b.name)
	}
	return all
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "`folder` with espm and espm-enc")
	flag.StringVar(&o.base, "base", "", "`folder` with espm and espm-enc of an earlier version, for the benchmark base")
	flag.IntVar(&o.nodes, "nodes", 100_000, "nodes of the large store")
	flag.IntVar(&o.rounds, "rounds", 300, "rounds of the ENC benchmark, one run of each program in a round")
	flag.StringVar(&o.only, "only", "", "only this benchmark: "+strings.Join(names(), ", "))
	flag.IntVar(&o.sample, "sample", 40, "single revocations to measure, of which the time of 200 is worked out")
	flag.DurationVar(&o.churn, "churn", 10*time.Minute, "how long the benchmark churn runs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.nodes <= smallStore || o.rounds < 1 {
		return fmt.Errorf("-nodes must be above %d, -rounds at least 1", smallStore)
	}
	l, err := newLab(o.bin)
	if err != nil {
		return err
	}
	defer l.remove()
	fmt.Printf("%d cores, load %s\n", runtime.NumCPU(), load())
	ran := false
	for _, b := range benchmarks {
		if o.only != "" && o.only != b.name {
			continue
		}
		ran = true
		if err := b.run(ctx, l, o); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		fmt.Printf("load %s\n", load())
	}
	if !ran {
		return fmt.Errorf("-only %s: no such benchmark", o.only)
	}
	return nil
}

// load returns the load averages of 1, 5 and 15 minutes, or "unknown".
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(text)); err == nil && len(fields) >= 3 {
		return strings.Join(fields[:3], " ")
	}
	return "unknown"
}
