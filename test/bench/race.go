package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// program is a program whose process time is measured.
type program struct {
	name  string
	nodes int // nodes in the store that it queries; 0: no store
	args  func(round int) []string

	times []time.Duration // from posix_spawn to exit; sorted after race
}

// race runs every program once in each round, in random order.
func race(ctx context.Context, programs []*program, rounds int) error {
	for _, p := range programs {
		if err := p.check(ctx); err != nil {
			return err
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for round := range rounds {
		for _, i := range rand.Perm(len(programs)) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := programs[i].time(round, null); err != nil {
				return err
			}
		}
	}
	for _, p := range programs {
		slices.Sort(p.times)
	}
	return nil
}

// check runs a program once. check verifies the output, and brings the program into the page cache.
func (p *program) check(ctx context.Context) error {
	args := p.args(0)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	if p.nodes > 0 && !strings.Contains(string(out), "\n  \"apache\":\n") {
		return fmt.Errorf("%s: not the node's classes:\n%s", strings.Join(args, " "), out)
	}
	return nil
}

func (p *program) time(round int, null *os.File) error {
	args := p.args(round)
	start := time.Now()
	process, err := os.StartProcess(args[0], args, &os.ProcAttr{Files: []*os.File{null, null, null}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		return err
	}
	state, err := process.Wait()
	p.times = append(p.times, time.Since(start))
	if err == nil && !state.Success() {
		err = errors.New(state.String())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// quantile returns the time that the given share of the runs did not exceed.
func (p *program) quantile(share float64) time.Duration {
	return p.times[min(int(share*float64(len(p.times))), len(p.times)-1)]
}

func (p *program) p50() time.Duration { return p.quantile(0.5) }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// goal prints whether a goal is met.
func goal(what string, have float64, met bool) {
	verdict := "missed"
	if met {
		verdict = "met"
	}
	fmt.Printf("goal: %s: %.2f, %s\n", what, have, verdict)
}
