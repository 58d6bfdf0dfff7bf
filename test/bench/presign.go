package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	presignRounds = 15
	presignTurn   = 2 * time.Second
	presignWarmUp = 10 * time.Second // for each contender: the JVM compiles frequent code first
	// presignLoss is the limit of espm's time for a certificate, relative to the bare API: 5 % more.
	presignLoss = 1.05
)

// benchPresign compares a provision through espm with direct calls of Puppet Server's API.
func benchPresign(ctx context.Context, l lab, _ options) error {
	return onServers(ctx, l, "presign", 0, 0, func(s *puppetServer) error { return presign(ctx, l, s) })
}

func presign(ctx context.Context, l lab, s *puppetServer) error {
	d, err := l.beside(ctx, s)
	if err != nil {
		return err
	}
	err = comparePresign(ctx, s, d)
	return errors.Join(err, d.stop())
}

func comparePresign(ctx context.Context, s *puppetServer, d *daemon) error {
	fmt.Printf("\nPresigning, Puppet Server %s; %d rounds of %v each, in turns\n", s.host.version, presignRounds, presignTurn)
	fmt.Printf("%-26s %8s %10s %10s %10s %10s\n", "", "callers", "a second", "p50", "p99", "time")
	for _, callers := range []int{1, 4} {
		bare, closeBare, err := barePresigns(s, callers)
		if err != nil {
			return err
		}
		espm, closeEspm, err := espmPresigns(d)
		if err != nil {
			return err
		}
		base := &contender{name: "bare API", callers: callers, write: bare}
		ours := &contender{name: "ProvisionNode", callers: callers, write: espm}
		err = race2(ctx, base, ours)
		closeBare()
		if err := errors.Join(err, closeEspm()); err != nil {
			return err
		}
		for _, c := range []*contender{base, ours} {
			fmt.Printf("%-26s %8d %10.1f %10s %10s %10.3f\n", c.name, c.callers, median(c.rates),
				milliseconds(c.quantile(0.5)), milliseconds(c.quantile(0.99)), base.against(c))
		}
		slower := base.against(ours)
		goal(fmt.Sprintf("time of a presign with %d callers at most %.2f x the bare API's", callers, presignLoss), slower, slower <= presignLoss)
	}
	return nil
}

// race2 runs two contenders in turns, and swaps their order in every round.
func race2(ctx context.Context, a, b *contender) error {
	for round := range presignRounds + 1 {
		turn, pair := presignTurn, []*contender{a, b}
		if round == 0 {
			turn = presignWarmUp
		} else if round%2 == 0 {
			pair = []*contender{b, a}
		}
		for _, c := range pair {
			if err := c.run(ctx, turn); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if round == 0 {
				c.rates, c.times = nil, nil
			}
		}
	}
	return nil
}

// presigned numbers the certnames, so that each one is unique.
var presigned atomic.Int64

func newName() string { return fmt.Sprintf("new-%06d.prod.example.com", presigned.Add(1)) }

func barePresigns(s *puppetServer, callers int) (write, func(), error) {
	api, err := s.bareAPI(callers)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) error { return api.presign(ctx, newName()) }, api.client.CloseIdleConnections, nil
}

func espmPresigns(d *daemon) (write, func() error, error) {
	conn, err := d.dial()
	if err != nil {
		return nil, nil, err
	}
	nodes := espmv1.NewNodeServiceClient(conn)
	return func(ctx context.Context) error {
		_, err := nodes.ProvisionNode(ctx, provisionRequest(newName()))
		return err
	}, conn.Close, nil
}

func provisionRequest(name string) *espmv1.ProvisionNodeRequest {
	return &espmv1.ProvisionNodeRequest{
		Node:        &espmv1.Node{Certname: name},
		Certificate: &espmv1.CertificateSpec{KeyAlgorithm: "ec-p256", Ttl: durationpb.New(ttl * time.Second)},
	}
}

// onServers runs a benchmark with each available Puppet Server, one after the other. Each Puppet Server
// gets a new CA.
func onServers(ctx context.Context, l lab, name string, issued, revoked int, f func(*puppetServer) error) error {
	hosts, missing := findHosts()
	for _, why := range missing {
		fmt.Printf("%s: skipped: %s\n", name, why)
	}
	for _, h := range hosts {
		dir := l.path(name + "-" + h.version)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := makeCA(filepath.Join(dir, "ca"), issued, revoked); err != nil {
			return err
		}
		begin := time.Now()
		s, err := h.startServer(ctx, dir)
		if err != nil {
			return err
		}
		fmt.Printf("\nPuppet Server %s ready after %.0f s\n", h.version, time.Since(begin).Seconds())
		if err := errors.Join(f(s), s.stop()); err != nil {
			return err
		}
	}
	return nil
}
