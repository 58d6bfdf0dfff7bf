package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/store"
)

// benchAudit compares commits with an audit line and commits without.
func benchAudit(ctx context.Context, l lab, _ options) error {
	without, closeWithout, err := storeCommits(ctx, l, "without", false)
	if err != nil {
		return err
	}
	defer closeWithout()
	with, closeWith, err := storeCommits(ctx, l, "with", true)
	if err != nil {
		return err
	}
	defer closeWith()
	fmt.Printf("\nCommits of a node a second; %d rounds of %v each, in turns, on one file system\n", registerRounds, turn)
	fmt.Printf("%8s %10s %12s %8s\n", "callers", "no line", "with a line", "ratio")
	for _, n := range []int{1, callers} {
		plain, audited := &contender{callers: n, write: without}, &contender{callers: n, write: with}
		for range registerRounds {
			for _, c := range []*contender{plain, audited} {
				if err := c.run(ctx, turn); err != nil {
					return err
				}
			}
		}
		fmt.Printf("%8d %10.0f %12.0f %8.2f\n", n, median(plain.rates), median(audited.rates), audited.against(plain))
	}
	return nil
}

// sealing starts to seal the audit log of a store, like a daemon. The returned function stops the sealing,
// and then calls end.
func sealing(ctx context.Context, s *store.Store, end func() error) func() error {
	log := logrus.New()
	log.SetOutput(io.Discard)
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		audit.New(s, audit.Options{Now: time.Now, Log: log}).Run(ctx)
	}()
	return func() error {
		stop()
		<-ended
		return end()
	}
}
