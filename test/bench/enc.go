package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const smallStore = 1000

// same is the highest ratio at which two medians count as equal.
const same = 1.1

//go:embed testdata/enc.c
var staticC string

// benchENC measures the ENC as a process that Puppet Server starts, from spawn to exit. Stores of two
// sizes are measured in turns.
func benchENC(ctx context.Context, l lab, o options) error {
	programs, baseline := references(ctx, l)
	for _, name := range []string{"hello", "grpcenc"} {
		if err := l.build(ctx, name); err != nil {
			return err
		}
	}
	programs = append(programs, &program{name: "a Go program that prints", args: fixed(l.path("hello"))})
	var espm, fallback [2]*program
	for i, nodes := range []int{smallStore, o.nodes} {
		s, err := newSite(ctx, l, nodes)
		if err != nil {
			return err
		}
		defer s.daemon.stop()
		espm[i], fallback[i] = s.espm(), s.fallback()
		programs = append(programs, espm[i], fallback[i], s.grpc())
	}
	if err := race(ctx, programs, o.rounds); err != nil {
		return err
	}
	fmt.Printf("\nThe ENC as a process, spawn to exit; %d rounds, in turns\n", o.rounds)
	table(programs, baseline)
	if baseline != nil {
		r := ratio(espm[1].p50(), baseline.p50())
		goal(fmt.Sprintf("p50 of espm-enc with %d nodes at most 3 x static C", o.nodes), r, r <= 3)
	}
	for _, pair := range [][2]*program{espm, fallback} {
		r := ratio(pair[1].p50(), pair[0].p50())
		goal(fmt.Sprintf("p50 of %s with %d nodes the same as with %d", pair[0].name, o.nodes, smallStore), r, r <= same)
	}
	return nil
}

// references returns the programs that don't use espm. One of them is the baseline, the static C program;
// baseline is nil if the program can't be compiled.
func references(ctx context.Context, l lab) (programs []*program, baseline *program) {
	if err := compileC(ctx, l); err != nil {
		fmt.Printf("no static C program to compare with: %v\n", err)
	} else {
		baseline = &program{name: "static C", args: func(round int) []string { return []string{l.path("enc-c"), certname(round)} }}
		programs = append(programs, baseline)
	}
	ruby, err := exec.LookPath("ruby")
	if err != nil {
		fmt.Printf("no ruby to compare with: %v\n", err)
		return programs, baseline
	}
	return append(programs, &program{name: "ruby -e 1", args: fixed(ruby, "-e", "1")}), baseline
}

func fixed(args ...string) func(int) []string { return func(int) []string { return args } }

func compileC(ctx context.Context, l lab) error {
	out := l.path("build-c")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "cc", "-O2", "-static", "-x", "c", "-", "-o", filepath.Join(out, "enc-c"))
	cmd.Stdin = strings.NewReader(staticC)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w %s", err, text)
	}
	return l.install(filepath.Join(out, "enc-c"))
}

// site is a store with a daemon, and a copy of the store that no daemon has open.
type site struct {
	lab    lab
	nodes  int
	daemon *daemon
	copy   string
}

func newSite(ctx context.Context, l lab, nodes int) (*site, error) {
	d, err := l.initialize(ctx, fmt.Sprint("site-", nodes))
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := populate(ctx, d.store(), nodes); err != nil {
		return nil, fmt.Errorf("storing %d nodes: %w", nodes, err)
	}
	s := &site{lab: l, nodes: nodes, daemon: d, copy: filepath.Join(d.dir, "copy.db")}
	text, err := os.ReadFile(d.store())
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.copy, text, 0o600); err != nil {
		return nil, err
	}
	fmt.Printf("%d nodes stored, %d MiB, in %.1f s\n", nodes, len(text)>>20, time.Since(start).Seconds())
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return s, nil
}

// name returns another node in each round, spread over the store.
func (s *site) name(round int) string { return certname(round * 7919 % s.nodes) }

func (s *site) espm() *program {
	return &program{name: "espm-enc", nodes: s.nodes, args: func(round int) []string {
		return []string{s.lab.path("espm-enc"), "--socket", s.daemon.socket(), "--db", s.daemon.store(), s.name(round)}
	}}
}

func (s *site) fallback() *program {
	return &program{name: "espm-enc, daemon down", nodes: s.nodes, args: func(round int) []string {
		return []string{s.lab.path("espm-enc"), "--socket", s.copy + ".sock", "--db", s.copy, s.name(round)}
	}}
}

func (s *site) grpc() *program {
	return &program{name: "a Go program with grpc", nodes: s.nodes, args: func(round int) []string {
		return []string{s.lab.path("grpcenc"), s.daemon.address(), s.name(round)}
	}}
}

func table(programs []*program, baseline *program) {
	fmt.Printf("%-26s %8s %10s %10s %12s\n", "", "nodes", "p50", "p99", "p50 / C's")
	for _, p := range programs {
		nodes, against := "-", "-"
		if p.nodes > 0 {
			nodes = fmt.Sprint(p.nodes)
		}
		if baseline != nil {
			against = fmt.Sprintf("%.2f", ratio(p.p50(), baseline.p50()))
		}
		fmt.Printf("%-26s %8s %10s %10s %12s\n", p.name, nodes, milliseconds(p.p50()), milliseconds(p.quantile(0.99)), against)
	}
}
