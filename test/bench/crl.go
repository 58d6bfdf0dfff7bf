package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	// crlLoss is the limit of a Revoke's time, relative to the bare cost: hash, signature and write of the
	// same bytes.
	crlLoss = 3
	// startLimit is the limit of the time until the daemon serves. entryLimit is the limit of the memory
	// of a CRL entry, in bytes. Both are for the largest of startEntries.
	startLimit = time.Second
	entryLimit = 200
	starts     = 5
	// settled is longer than the daemon's first round of periodic work.
	settled = 5 * time.Second
)

// startEntries are the sizes of the CRL. The first one is the baseline.
var startEntries = []int{0, 100_000, 1_000_000}

// benchCRL runs the Go benchmarks of the directory authority. The Go benchmarks compare the authority with
// the minimal work, in turns. benchCRL also measures the daemon's start.
func benchCRL(ctx context.Context, l lab, _ options) error {
	fmt.Println("\nThe CA directory: one revocation of 20 certificates (BenchmarkRevoke) and the start (BenchmarkOpen)")
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark(Revoke|Open)$", "-benchtime", "3s", "-count", "3", "./internal/ca/directory")
	out, err := cmd.CombinedOutput()
	fmt.Print(string(out))
	if err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	const entries = 100_000
	large := fmt.Sprintf("BenchmarkRevoke/entries=%d", entries)
	loss, err := worst(string(out), large, "x-bare")
	if err != nil {
		return err
	}
	goal(fmt.Sprintf("a revocation with %d entries at most %d x hash, signature and write of its bytes", entries, crlLoss), loss, loss <= crlLoss)
	return measureStarts(ctx, l)
}

// measureStarts starts the daemon several times with each size of CRL. measureStarts reports the time
// until the daemon serves, and the daemon's memory after that.
func measureStarts(ctx context.Context, l lab) error {
	fmt.Printf("\nespm serve: the CA's CRL with so many entries, twice as many lines in the inventory\n%10s %14s %14s %14s %14s\n",
		"entries", "serves after", "after 5 s", "highest", "bytes an entry")
	var empty int64
	var slowest time.Duration
	var each float64
	for _, entries := range startEntries {
		d, err := l.withCA(ctx, fmt.Sprintf("crl-%d", entries))
		if err != nil {
			return err
		}
		if err := (past{first: longSerial, issued: 2 * entries, revoked: entries}).write(d.ca()); err != nil {
			return err
		}
		slowest, each = 0, 0
		for range starts {
			s, err := l.measureStart(ctx, d.dir)
			if err != nil {
				return err
			}
			if entries == 0 {
				empty = max(empty, s.settled)
			} else {
				each = max(each, float64(s.settled-empty)/float64(entries))
			}
			slowest = max(slowest, s.took)
			fmt.Printf("%10d %14s %11.0f MB %11.0f MB %14.0f\n", entries, milliseconds(s.took), float64(s.settled)/1e6, float64(s.highest)/1e6, each)
		}
	}
	last := startEntries[len(startEntries)-1]
	goal(fmt.Sprintf("seconds to start with %d entries under %.0f, every time", last, startLimit.Seconds()), slowest.Seconds(), slowest < startLimit)
	goal(fmt.Sprintf("bytes of memory an entry with %d entries at most %d, every time", last, entryLimit), each, each <= entryLimit)
	return nil
}

// started has the results of one start. The memory is in bytes.
type started struct {
	took             time.Duration
	settled, highest int64
}

func (l lab) measureStart(ctx context.Context, dir string) (s started, err error) {
	d := l.daemon(dir)
	begin := time.Now()
	err = d.start(ctx)
	s.took = time.Since(begin)
	if err == nil {
		select {
		case <-time.After(settled):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil {
		s.settled, err = d.memory("RssAnon")
	}
	if err == nil {
		s.highest, err = d.memory("VmHWM")
	}
	return s, errors.Join(err, d.stop())
}

// worst returns the highest result of a Go benchmark in a unit.
func worst(output, benchmark, unit string) (high float64, err error) {
	found := false
	for line := range strings.Lines(output) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.Split(fields[0], "-")[0] != benchmark { // the suffix -N is the number of cores
			continue
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if fields[i+1] != unit {
				continue
			}
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return 0, err
			}
			high, found = max(high, value), true
		}
	}
	if !found {
		return 0, fmt.Errorf("%s gave no %s", benchmark, unit)
	}
	return high, nil
}
