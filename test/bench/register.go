package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	callers        = 64
	connections    = 8 // shared by the callers
	registerRounds = 7
	turn           = time.Second // the duration of a contender's turn in a round
)

type write func(ctx context.Context) error

// contender is a group of concurrent callers.
type contender struct {
	name    string
	callers int
	write   write

	rates []float64 // writes a second, one value for each round
	mu    sync.Mutex
	times []time.Duration // of all calls, not sorted
}

// benchRegister compares durable registrations with writes that each wait for their own fsync.
func benchRegister(ctx context.Context, l lab, _ options) error {
	size := recordSize()
	fsync, closeFsync, err := fsyncEach(l, size)
	if err != nil {
		return err
	}
	defer closeFsync()
	commit, closeEngine, err := storeCommits(ctx, l, "engine", false)
	if err != nil {
		return err
	}
	defer closeEngine()
	register, closeAPI, err := registrations(ctx, l)
	if err != nil {
		return err
	}
	defer closeAPI()
	base := &contender{name: fmt.Sprintf("write of %d bytes, fsync", size), callers: 1, write: fsync}
	contenders := []*contender{
		base,
		{name: "commit of a node to the store", callers: 1, write: commit},
		{name: "commit of a node to the store", callers: callers, write: commit},
		{name: "RegisterNode of espm serve", callers: 1, write: register},
		{name: "RegisterNode of espm serve", callers: callers, write: register},
	}
	for range registerRounds {
		for _, c := range contenders {
			if err := c.run(ctx, turn); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	fmt.Printf("\nDurable writes a second; %d rounds of %v each, in turns, on one file system\n", registerRounds, turn)
	fmt.Printf("%-32s %8s %10s %16s\n", "", "callers", "a second", "x one fsync each")
	for _, c := range contenders {
		fmt.Printf("%-32s %8d %10.0f %16.2f\n", c.name, c.callers, median(c.rates), c.against(base))
	}
	return nil
}

// run makes all callers of a contender write until the turn ends.
func (c *contender) run(ctx context.Context, turn time.Duration) error {
	start := time.Now()
	var wg sync.WaitGroup
	var written atomic.Int64
	errs := make(chan error, c.callers)
	for range c.callers {
		wg.Go(func() {
			var times []time.Duration
			for time.Since(start) < turn {
				begin := time.Now()
				if err := c.write(ctx); err != nil {
					errs <- err
					return
				}
				times = append(times, time.Since(begin))
				written.Add(1)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.times = append(c.times, times...)
		})
	}
	wg.Wait()
	c.rates = append(c.rates, float64(written.Load())/time.Since(start).Seconds())
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// against returns how many times faster c was than other: the median of the rounds.
func (c *contender) against(other *contender) float64 {
	var ratios []float64
	for i := range c.rates {
		ratios = append(ratios, c.rates[i]/other.rates[i])
	}
	return median(ratios)
}

// quantile returns the time that the given share of the calls did not exceed.
func (c *contender) quantile(share float64) time.Duration {
	sorted := slices.Sorted(slices.Values(c.times))
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// recordSize returns the bytes that a registration writes: the record and its keys.
func recordSize() int {
	n := newNode(certname(0))
	record, err := json.Marshal(n)
	if err != nil {
		panic(err) // all types are valid in JSON
	}
	return len(record) + (1+len(n.Groups))*len("ix/node-group/linux/"+n.Certname)
}

// fsyncEach returns a write that appends size bytes and syncs the file.
func fsyncEach(l lab, size int) (write, func() error, error) {
	f, err := os.Create(l.path("fsync"))
	if err != nil {
		return nil, nil, err
	}
	record := make([]byte, size)
	return func(context.Context) error {
		_, err := f.Write(record)
		return errors.Join(err, f.Sync())
	}, f.Close, nil
}

// storeCommits returns a write that registers a node in a store of this process. If audited, each
// registration has an audit line, which is sealed concurrently.
func storeCommits(ctx context.Context, l lab, name string, audited bool) (write, func() error, error) {
	path := l.path(name + ".db")
	if err := populate(ctx, path, 0); err != nil {
		return nil, nil, err
	}
	engine, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		return nil, nil, err
	}
	s, err := store.New(ctx, engine)
	if err != nil {
		return nil, nil, errors.Join(err, engine.Close())
	}
	end := engine.Close
	if audited {
		end = sealing(ctx, s, end)
	}
	var next atomic.Int64
	return func(ctx context.Context) error {
		c := store.NewChange()
		n := newNode(certname(int(next.Add(1))))
		c.PutNode(nil, n)
		if c.Unaudited(); audited {
			c.Audit(audit.OfNode(ctx, time.Now(), node.ActionRegister, n))
		}
		_, err := s.Commit(ctx, c)
		return err
	}, end, nil
}

// registrations returns a write that calls RegisterNode of a daemon.
func registrations(ctx context.Context, l lab) (write, func() error, error) {
	d, err := l.initialize(ctx, "register")
	if err != nil {
		return nil, nil, err
	}
	if err := populate(ctx, d.store(), 0); err != nil {
		return nil, nil, err
	}
	if err := d.start(ctx); err != nil {
		return nil, nil, errors.Join(err, d.stop())
	}
	var clients []espmv1.NodeServiceClient
	end := d.stop
	for range connections {
		conn, err := d.dial()
		if err != nil {
			return nil, nil, errors.Join(err, end())
		}
		end = closeFirst(conn, end)
		clients = append(clients, espmv1.NewNodeServiceClient(conn))
	}
	var next atomic.Int64
	return func(ctx context.Context) error {
		call := next.Add(1)
		request, err := registerRequest(certname(int(call)))
		if err != nil {
			return err
		}
		_, err = clients[call%connections].RegisterNode(ctx, request)
		return err
	}, end, nil
}

func closeFirst(conn *grpc.ClientConn, then func() error) func() error {
	return func() error { return errors.Join(conn.Close(), then()) }
}

// registerRequest returns the request that registers newNode.
func registerRequest(name string) (*espmv1.RegisterNodeRequest, error) {
	n := newNode(name)
	c := &espmv1.Classification{Environment: n.Classification.Environment, Classes: map[string]*espmv1.ClassParameters{}}
	for class, parameters := range n.Classification.Classes {
		values, err := toValues(parameters)
		if err != nil {
			return nil, err
		}
		c.Classes[class] = &espmv1.ClassParameters{Parameters: values}
	}
	var err error
	if c.Parameters, err = toValues(n.Classification.Parameters); err != nil {
		return nil, err
	}
	return &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: name, Classification: c, Groups: n.Groups}}, nil
}

func toValues(in map[string]any) (map[string]*structpb.Value, error) {
	out := map[string]*structpb.Value{}
	for k, v := range in {
		value, err := structpb.NewValue(v)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %w", k, err)
		}
		out[k] = value
	}
	return out, nil
}
