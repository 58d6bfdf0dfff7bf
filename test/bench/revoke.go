package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	revokeRounds = 5    // odd, for the median
	revocations  = 1000 // in each round, by all callers
	revokeSample = 20   // single revocations at Puppet Server, in all rounds
	// revokeLimit is the limit of the time that espm needs for the revocations, with bigCRL entries.
	// revokeGain is how many times faster than Puppet Server espm must be.
	revokeLimit = time.Second
	revokeGain  = 1000
	// perCRL is the number of revocations that must share one CRL on average.
	perCRL = 50
	// longSerial is the minimum of a serial number as long as those of espm.
	longSerial = 1 << 62
)

// benchRevoke measures terminations until the last receipt, at CAs of espm with CRLs of several sizes. For
// comparison it measures single revocations at Puppet Servers.
func benchRevoke(ctx context.Context, l lab, _ options) error {
	f, err := l.prepared(ctx)
	if err != nil {
		return err
	}
	if hosts, missing := findHosts(); len(hosts) == 0 {
		fmt.Printf("revoke: no Puppet Server to compare with: %s\n", strings.Join(missing, "; "))
		return measureRevocations(ctx, l, f, nil)
	}
	return onServers(ctx, l, "revoke", bigInventory, bigCRL, func(s *puppetServer) error { return measureRevocations(ctx, l, f, s) })
}

// measureRevocations measures espm and, unless s is nil, a Puppet Server.
func measureRevocations(ctx context.Context, l lab, f prepared, s *puppetServer) (err error) {
	name := "revoke"
	if s != nil {
		name += "-beside-" + s.host.version
	}
	var owners []*owner
	defer func() {
		for _, o := range owners {
			err = errors.Join(err, o.close())
		}
	}()
	for _, entries := range []int{0, bigCRL, 4 * bigCRL} {
		o, err := l.owner(ctx, f, fmt.Sprintf("%s-%d", name, entries), entries)
		if err != nil {
			return err
		}
		owners = append(owners, o)
	}
	if s != nil { // the JVM compiles frequent code first
		if _, err := sampleRevocations(ctx, s, revokeSample/revokeRounds); err != nil {
			return err
		}
	}
	var single []time.Duration
	for round := range revokeRounds {
		for _, o := range owners {
			if err := o.terminate(ctx, round); err != nil {
				return fmt.Errorf("CRL of %d entries: %w", o.entries, err)
			}
		}
		if s != nil {
			took, err := sampleRevocations(ctx, s, revokeSample/revokeRounds)
			if err != nil {
				return err
			}
			single = append(single, took)
		}
	}
	reportRevocations(owners, s, single)
	return nil
}

// sampleRevocations returns the average time of a revocation at Puppet Server, for n concurrent
// revocations.
func sampleRevocations(ctx context.Context, s *puppetServer, n int) (time.Duration, error) {
	api, err := s.bareAPI(n)
	if err != nil {
		return 0, err
	}
	defer api.client.CloseIdleConnections()
	took, err := revokeSingly(ctx, api, n)
	return took / time.Duration(n), err
}

func reportRevocations(owners []*owner, s *puppetServer, single []time.Duration) {
	fmt.Printf("\n%d terminations by %d callers until the last receipt, the CA's key RSA-4096; %d rounds, in turns\n", revocations, callers, revokeRounds)
	fmt.Printf("%-26s %12s %10s %10s %10s %14s\n", "", "CRL entries", "fastest s", "median s", "slowest s", "CRLs a round")
	for _, o := range owners {
		fmt.Printf("%-26s %12d %10.3f %10.3f %10.3f %14.1f\n", "espm, its own directory", o.entries,
			slices.Min(o.times).Seconds(), median(seconds(o.times)), slices.Max(o.times).Seconds(), float64(o.crls)/revokeRounds)
	}
	if s != nil {
		all := seconds(single)
		for i := range all {
			all[i] *= revocations
		}
		fmt.Printf("%-26s %12d %10.1f %10.1f %10.1f %14d  (worked out from %d single revocations; inventory of %d lines)\n", "Puppet Server "+s.host.version,
			bigCRL, slices.Min(all), median(all), slices.Max(all), revocations, revokeSample, bigInventory)
	}
	for _, o := range owners {
		shared := float64(revocations*revokeRounds) / float64(o.crls)
		goal(fmt.Sprintf("terminations for one CRL, %d entries, more than %d", o.entries, perCRL), shared, shared > perCRL)
		if o.entries != bigCRL {
			continue
		}
		took := median(seconds(o.times))
		goal(fmt.Sprintf("seconds with %d entries, median of the rounds, under %.0f", bigCRL, revokeLimit.Seconds()), took, took < revokeLimit.Seconds())
		if s == nil {
			continue
		}
		var gains []float64
		for round, took := range o.times {
			gains = append(gains, ratio(single[round]*revocations, took))
		}
		gain := median(gains)
		goal(fmt.Sprintf("times faster than Puppet Server with %d entries, median of the rounds (from %.0f to %.0f), at least %d",
			bigCRL, slices.Min(gains), slices.Max(gains), revokeGain), gain, gain >= revokeGain)
	}
}

func seconds(times []time.Duration) []float64 {
	out := make([]float64, len(times))
	for i, t := range times {
		out[i] = t.Seconds()
	}
	return out
}

// prepared is the folder of a daemon with its own CA, and the provisioned nodes of each round. Each daemon
// gets a copy, as it takes long to sign the certificates.
type prepared struct {
	dir   string
	lives [revokeRounds][]*espmv1.Node
}

// prepared provisions the nodes while the CRL is empty: each response of a provision contains the CRL.
func (l lab) prepared(ctx context.Context) (f prepared, err error) {
	d, err := l.withCA(ctx, "prepared")
	if err != nil {
		return f, err
	}
	o := owner{daemon: d}
	defer func() { err = errors.Join(err, o.close()) }()
	if err := o.open(ctx); err != nil {
		return f, err
	}
	f.dir = d.dir
	for round := range f.lives {
		f.lives[round] = make([]*espmv1.Node, revocations)
		err := share(revocations, callers, func(i int) error {
			p, err := o.nodes(i).ProvisionNode(ctx, provisionRequest(newName()))
			f.lives[round][i] = p.GetNode()
			return err
		})
		if err != nil {
			return f, err
		}
	}
	return f, nil
}

// withCA makes the folder of a daemon that has a CA with an RSA-4096 key.
func (l lab) withCA(ctx context.Context, name string) (*daemon, error) {
	d := l.daemon(l.path(name))
	if err := errors.Join(os.Mkdir(d.dir, 0o755), makeCA(d.ca(), 0, 0)); err != nil {
		return nil, err
	}
	return l.initialize(ctx, name)
}

func (d *daemon) ca() string { return filepath.Join(d.dir, "ca") }

// owner is a daemon with its own CA, and the callers' connections.
type owner struct {
	*daemon
	lives   [revokeRounds][]*espmv1.Node
	entries int // in the CRL, before the first round

	conns []*grpc.ClientConn
	times []time.Duration // one value for each round
	crls  int64           // CRLs signed in all rounds
}

// owner starts a daemon with the prepared nodes and a CRL of the given size.
func (l lab) owner(ctx context.Context, f prepared, name string, entries int) (*owner, error) {
	d := l.daemon(l.path(name))
	if out, err := exec.CommandContext(ctx, "cp", "-a", f.dir, d.dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cp: %w\n%s", err, out)
	}
	if entries > 0 {
		if err := (past{first: longSerial, issued: 2 * entries, revoked: entries}).write(d.ca()); err != nil {
			return nil, err
		}
	}
	o := &owner{daemon: d, lives: f.lives, entries: entries}
	if err := o.open(ctx); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *owner) open(ctx context.Context) error {
	if err := o.start(ctx); err != nil {
		return err
	}
	for range connections {
		conn, err := o.dial()
		if err != nil {
			return err
		}
		o.conns = append(o.conns, conn)
	}
	return nil
}

func (o *owner) close() (err error) {
	for _, conn := range o.conns {
		err = errors.Join(err, conn.Close())
	}
	o.conns = nil
	return errors.Join(err, o.stop())
}

func (o *owner) nodes(call int) espmv1.NodeServiceClient {
	return espmv1.NewNodeServiceClient(o.conns[call%connections])
}

// terminate terminates all nodes of a round, by concurrent callers that don't wait. One stream receives
// the receipts, as in a control plane.
func (o *owner) terminate(ctx context.Context, round int) error {
	before, err := o.crlNumber(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := espmv1.NewRevocationServiceClient(o.conns[0])
	now, err := client.ListRevocations(ctx, &espmv1.ListRevocationsRequest{PageSize: 1})
	if err != nil {
		return err
	}
	stream, err := client.WatchRevocations(ctx, &espmv1.WatchRevocationsRequest{AfterRevision: now.GetRevision()})
	if err != nil {
		return err
	}
	lives := o.lives[round]
	asked := make(chan error, 1)
	begin := time.Now()
	go func() {
		err := share(revocations, callers, func(i int) error {
			_, err := o.nodes(i).TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: lives[i].GetCertname(), Uid: lives[i].GetUid()})
			return err
		})
		if err != nil {
			cancel()
		}
		asked <- err
	}()
	received := awaitReceipts(stream, lives)
	took := time.Since(begin)
	if received != nil {
		cancel()
	}
	if err := errors.Join(<-asked, received); err != nil {
		return err
	}
	after, err := o.crlNumber(ctx)
	o.times, o.crls = append(o.times, took), o.crls+after-before
	return err
}

func awaitReceipts(stream grpc.ServerStreamingClient[espmv1.WatchRevocationsResponse], lives []*espmv1.Node) error {
	missing := make(map[string]bool, len(lives))
	for _, n := range lives {
		missing[n.GetUid()] = true
	}
	for len(missing) > 0 {
		event, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("%d receipts are missing: %w", len(missing), err)
		}
		if event.GetRevocation().GetPublishTime() != nil {
			delete(missing, event.GetRevocation().GetUid())
		}
	}
	return nil
}

func (o *owner) crlNumber(ctx context.Context) (int64, error) {
	status, err := espmv1.NewAuthorityServiceClient(o.conns[0]).GetAuthorityStatus(ctx, &espmv1.GetAuthorityStatusRequest{})
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(status.GetCrl().GetNumber(), 10, 64)
}
