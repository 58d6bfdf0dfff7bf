package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	terminations     = 200
	terminateCallers = 16
	terminateRounds  = 2
	bigInventory     = 100_000
	bigCRL           = 50_000
	terminateWait    = 30 * time.Minute
	// batchGain is how many times faster than single revocations espm must be.
	batchGain = 20
)

// benchTerminate compares terminations through espm, until the last receipt, with as many single
// revocations. The CA has a large inventory and a large CRL.
func benchTerminate(ctx context.Context, l lab, o options) error {
	return onServers(ctx, l, "terminate", bigInventory, bigCRL, func(s *puppetServer) error {
		d, err := l.beside(ctx, s)
		if err != nil {
			return err
		}
		return errors.Join(compareTerminations(ctx, s, d, o.sample), d.stop())
	})
}

func compareTerminations(ctx context.Context, s *puppetServer, d *daemon, sample int) error {
	api, err := s.bareAPI(terminateCallers)
	if err != nil {
		return err
	}
	defer api.client.CloseIdleConnections()
	conn, err := d.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	f := fleet{nodes: espmv1.NewNodeServiceClient(conn)}
	each := max(1, sample/terminateRounds)
	fmt.Printf("\nTerminating %d nodes, Puppet Server %s, CRL of %d entries, inventory of %d lines; %d rounds in turns\n",
		terminations, s.host.version, bigCRL, bigInventory, terminateRounds)
	fmt.Printf("%-26s %8s %14s %10s %12s\n", "", "callers", "done in a turn", "seconds", fmt.Sprintf("for %d", terminations))
	var ratios []float64
	for range terminateRounds {
		if err := f.provision(ctx); err != nil {
			return err
		}
		single, err := revokeSingly(ctx, api, each)
		if err != nil {
			return err
		}
		batched, err := f.terminate(ctx)
		if err != nil {
			return err
		}
		all := single * terminations / time.Duration(each)
		fmt.Printf("%-26s %8d %14d %10.1f %12.1f\n", "certificate_status", terminateCallers, each, single.Seconds(), all.Seconds())
		fmt.Printf("%-26s %8d %14d %10.1f %12.1f\n", "TerminateNode", terminateCallers, terminations, batched.Seconds(), batched.Seconds())
		ratios = append(ratios, ratio(all, batched))
	}
	worst := slices.Min(ratios)
	goal(fmt.Sprintf("%d terminations at least %d times faster than one by one, in every round", terminations, batchGain), worst, worst >= batchGain)
	return nil
}

// revokeSingly issues n certificates, and returns the duration of their revocation.
func revokeSingly(ctx context.Context, api bareAPI, n int) (time.Duration, error) {
	names := make([]string, n)
	err := share(n, 4, func(i int) error {
		names[i] = newName()
		return api.presign(ctx, names[i])
	})
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	err = share(n, terminateCallers, func(i int) error { return api.revoke(ctx, names[i]) })
	return time.Since(begin), err
}

// fleet has the nodes to terminate.
type fleet struct {
	nodes espmv1.NodeServiceClient
	lives [terminations]*espmv1.Node
}

func (f *fleet) provision(ctx context.Context) error {
	return share(terminations, 4, func(i int) error {
		p, err := f.nodes.ProvisionNode(ctx, provisionRequest(newName()), grpc.MaxCallRecvMsgSize(64<<20)) // the response contains the CRL
		f.lives[i] = p.GetNode()
		return err
	})
}

// terminate orders all terminations, and then waits for each receipt.
func (f *fleet) terminate(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	for _, wait := range []time.Duration{0, terminateWait} {
		err := share(terminations, terminateCallers, func(i int) error {
			got, err := f.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{
				Certname: f.lives[i].GetCertname(), Uid: f.lives[i].GetUid(), Wait: durationpb.New(wait),
			})
			if err == nil && wait > 0 && (len(got.GetRevocations()) != 1 || got.GetRevocations()[0].GetPublishTime() == nil) {
				err = fmt.Errorf("%s has no receipt", f.lives[i].GetCertname())
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// share runs work for 0 to n-1 in the given number of concurrent callers.
func share(n, callers int, work func(i int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, callers)
	for c := range callers {
		wg.Go(func() {
			for i := c; i < n && errs[c] == nil; i += callers {
				errs[c] = work(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
