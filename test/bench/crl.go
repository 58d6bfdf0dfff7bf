package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	// crlLoss is what a Revoke may cost: three times the bare cost of its bytes.
	crlLoss = 3
	// startLimit is how long the daemon may take to serve with so many entries
	// in the CRL and lines in the inventory.
	startLimit   = time.Second
	startEntries = 100_000
	startIssued  = 500_000
	starts       = 5
)

// benchCRL runs the Go benchmarks of the directory authority, which compare it with the
// minimal work, in turns. It also measures the daemon's start.
func benchCRL(ctx context.Context, l lab, _ options) error {
	fmt.Println("\nThe CA directory: one revocation of 20 certificates (BenchmarkRevoke) and the start (BenchmarkOpen)")
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark(Revoke|Open)$", "-benchtime", "3s", "-count", "3", "./internal/ca/directory")
	out, err := cmd.CombinedOutput()
	fmt.Print(string(out))
	if err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	large := fmt.Sprintf("BenchmarkRevoke/entries=%d", startEntries)
	loss, err := worst(string(out), large, "x-bare")
	if err != nil {
		return err
	}
	goal(fmt.Sprintf("a revocation with %d entries at most %d x hash, signature and write of its bytes", startEntries, crlLoss), loss, loss <= crlLoss)
	return measureStarts(ctx, l)
}

// measureStarts starts the daemon some times on a large CA, until it serves.
func measureStarts(ctx context.Context, l lab) error {
	d, err := l.withCA(ctx, "crl")
	if err != nil {
		return err
	}
	if err := (past{first: longSerial, issued: startIssued, revoked: startEntries}).write(d.ca()); err != nil {
		return err
	}
	fmt.Printf("\nespm serve, CRL of %d entries, inventory of %d lines\n%12s %14s\n", startEntries, startIssued, "serves after", "resident")
	var slowest time.Duration
	for range starts {
		d := l.daemon(d.dir)
		begin := time.Now()
		if err := d.start(ctx); err != nil {
			return errors.Join(err, d.stop())
		}
		took := time.Since(begin)
		slowest = max(slowest, took)
		resident, err := d.resident()
		if err := errors.Join(err, d.stop()); err != nil {
			return err
		}
		fmt.Printf("%12s %11.0f MB\n", milliseconds(took), float64(resident)/1e6)
	}
	goal(fmt.Sprintf("seconds to start under %.0f, every time", startLimit.Seconds()), slowest.Seconds(), slowest < startLimit)
	return nil
}

// resident is how much memory a running daemon holds, in bytes.
func (d *daemon) resident() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var size, pages int64
	_, err = fmt.Sscan(string(text), &size, &pages)
	return pages * int64(os.Getpagesize()), err
}

// worst returns the highest figure that the runs of a Go benchmark gave in a unit.
func worst(output, benchmark, unit string) (high float64, err error) {
	found := false
	for line := range strings.Lines(output) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.Split(fields[0], "-")[0] != benchmark { // -N is the number of cores
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
