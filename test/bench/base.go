package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	baseRounds  = 24   // pairs of base and present version, each with a new store and a new CA
	baseNodes   = 1000 // registered, presigned and terminated in each round
	baseLookUps = 100  // by espm-enc, in each round
	cpuLimit    = 1.03
	timeLimit   = 1.10
)

// benchBase compares this espm with an earlier version. benchBase measures the CPU time of look-ups and
// registrations, and the duration of presigns and terminations.
func benchBase(ctx context.Context, now lab, o options) error {
	if o.base == "" {
		fmt.Println("base: skipped, as no BASE is named to compare with (make bench BASE=COMMIT)")
		return nil
	}
	then, err := newLab(o.base)
	if err != nil {
		return err
	}
	defer then.remove()
	work := []*baseWork{
		{name: "espm-enc and the daemon, CPU of a look-up", limit: cpuLimit},
		{name: "RegisterNode, CPU of the daemon", limit: cpuLimit},
		{name: "PresignCertificate, time", limit: timeLimit},
		{name: "1,000 terminations until the last receipt, time", limit: timeLimit},
	}
	for round := range baseRounds {
		var pair [2][]time.Duration
		for i := range pair {
			side := (i + round) % 2
			if pair[side], err = []lab{then, now}[side].live(ctx, round); err != nil {
				return fmt.Errorf("%s: %w", []string{"base", "now"}[side], err)
			}
		}
		for i, w := range work {
			w.ratios = append(w.ratios, ratio(pair[1][i], pair[0][i]))
			w.times = append(w.times, float64(pair[1][i])/float64(time.Millisecond))
		}
	}
	fmt.Printf("\nThis espm against the base; %d rounds, in turns, each with a new store and CA\n", baseRounds)
	for _, w := range work {
		got := median(w.ratios)
		fmt.Printf("%-50s %10.2f ms a round\n", w.name, median(w.times))
		goal(fmt.Sprintf("%s, at most %.2f x", w.name, w.limit), got, got <= w.limit)
	}
	return nil
}

type baseWork struct {
	name   string
	limit  float64
	ratios []float64
	times  []float64 // in milliseconds
}

// live runs all measured steps with a new daemon, and returns the cost of each step.
func (l lab) live(ctx context.Context, round int) (costs []time.Duration, err error) {
	d, err := l.initialize(ctx, fmt.Sprintf("base-%d", round))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop(), os.RemoveAll(d.dir)) }()
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	conn, err := d.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	f := baseFleet{lab: l, daemon: d, conn: conn}
	for _, part := range []func(context.Context) (time.Duration, error){f.register, f.lookUp, f.presign, f.terminate} {
		took, err := part(ctx)
		if err != nil {
			return nil, err
		}
		costs = append(costs, took)
	}
	costs[0], costs[1] = costs[1], costs[0]
	return costs, nil
}

type baseFleet struct {
	lab    lab
	daemon *daemon
	conn   *grpc.ClientConn
}

// register returns the CPU time that the daemon needs for the registrations.
func (f baseFleet) register(ctx context.Context) (time.Duration, error) {
	groups := espmv1.NewGroupServiceClient(f.conn)
	for _, g := range fleetGroups() {
		if _, err := groups.CreateGroup(ctx, &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: g.Name}}); err != nil {
			return 0, err
		}
	}
	nodes := espmv1.NewNodeServiceClient(f.conn)
	return f.cpu(func() error {
		return share(baseNodes, callers, func(i int) error {
			request, err := registerRequest(certname(i))
			if err != nil {
				return err
			}
			_, err = nodes.RegisterNode(ctx, request)
			return err
		})
	})
}

// lookUp returns the CPU time that espm-enc and the daemon need for the look-ups.
func (f baseFleet) lookUp(context.Context) (time.Duration, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	var theirs time.Duration
	ours, err := f.cpu(func() error {
		for i := range baseLookUps {
			args := []string{f.lab.path("espm-enc"), "--socket", f.daemon.socket(), "--db", f.daemon.store(), certname(i)}
			process, err := os.StartProcess(args[0], args, &os.ProcAttr{Files: []*os.File{null, null, null}, Env: []string{"PATH=/usr/bin:/bin"}})
			if err != nil {
				return err
			}
			state, err := process.Wait()
			if err != nil || !state.Success() {
				return errors.Join(err, errors.New(state.String()))
			}
			usage := state.SysUsage().(*syscall.Rusage)
			theirs += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
		}
		return nil
	})
	return ours + theirs, err
}

func (f baseFleet) presign(ctx context.Context) (time.Duration, error) {
	certificates := espmv1.NewCertificateServiceClient(f.conn)
	start := time.Now()
	err := share(baseNodes, callers, func(i int) error {
		_, err := certificates.PresignCertificate(ctx, &espmv1.PresignCertificateRequest{
			Certname: certname(i), Certificate: &espmv1.CertificateSpec{KeyAlgorithm: "ec-p256"},
		})
		return err
	})
	return time.Since(start), err
}

func (f baseFleet) terminate(ctx context.Context) (time.Duration, error) {
	nodes := espmv1.NewNodeServiceClient(f.conn)
	start := time.Now()
	err := share(baseNodes, callers, func(i int) error {
		t, err := nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: certname(i), Wait: durationpb.New(time.Minute)})
		if err == nil && (len(t.GetRevocations()) == 0 || t.GetRevocations()[0].GetCrlNumber() == "") {
			err = fmt.Errorf("%s: no receipt", certname(i))
		}
		return err
	})
	return time.Since(start), err
}

// cpu returns the CPU time that the daemon used during work. cpu reads schedstat, in nanoseconds, as the
// ticks of /proc/PID/stat are too coarse.
func (f baseFleet) cpu(work func() error) (time.Duration, error) {
	before, err := f.onCPU()
	if err != nil {
		return 0, err
	}
	if err := work(); err != nil {
		return 0, err
	}
	after, err := f.onCPU()
	return after - before, err
}

func (f baseFleet) onCPU() (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", f.daemon.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		spent, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += time.Duration(spent)
	}
	return sum, nil
}
