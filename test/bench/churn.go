package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	churnCallers = 64
	churnEntries = 100_000 // entries of the CRL at the start
	churnNodes   = 1_000_000
	churnTurn    = 200 // provisions of each daemon in a turn
	churnTurns   = 21
	// churnMemory is the limit of the daemon's anonymous memory at the end, in bytes. churnEntry is added
	// for each entry of the CRL.
	churnMemory = 200 << 20
	churnEntry  = 300
	// churnLoss is the limit of a provision's cost with the large CRL, relative to the cost with an empty
	// CRL.
	churnLoss = 1.1
)

// benchChurn provisions and terminates with a large store and a large CRL. benchChurn compares the cost
// with that of an empty CRL, and measures the memory.
func benchChurn(ctx context.Context, l lab, o options) (err error) {
	var fleets []*churn
	defer func() {
		for _, f := range fleets {
			err = errors.Join(err, f.stop())
		}
	}()
	begin := time.Now()
	filled := l.path("churn.db")
	if err := populate(ctx, filled, churnNodes); err != nil {
		return err
	}
	fmt.Printf("\nA store of %d nodes, written in %.0f s\n", churnNodes, time.Since(begin).Seconds())
	for _, entries := range []int{0, churnEntries} {
		f, err := l.churn(ctx, filled, entries)
		if f != nil {
			fleets = append(fleets, f)
		}
		if err != nil {
			return err
		}
	}
	for _, omit := range []bool{false, true} {
		if err := compareProvisions(ctx, fleets, omit); err != nil {
			return err
		}
	}
	return fleets[1].run(ctx, o.churn)
}

// compareProvisions compares the CPU time of a provision with the large CRL and with an empty CRL, in
// turns.
func compareProvisions(ctx context.Context, fleets []*churn, omit bool) (err error) {
	fmt.Printf("\nProvisions, CRL of %d entries against none, omit_crl %v, %d turns of %d each\n", churnEntries, omit, churnTurns, churnTurn)
	var ratios []float64
	for turn := range churnTurns {
		var took [2]time.Duration
		for i := range fleets {
			f := fleets[(i+turn)%2]
			if took[(i+turn)%2], err = f.provisions(ctx, churnTurn, omit); err != nil {
				return err
			}
		}
		if turn > 0 { // the first turn is a warm-up
			ratios = append(ratios, ratio(took[1], took[0]))
		}
	}
	loss := median(ratios)
	fmt.Printf("CPU of a provision: %s and %s a provision in the last turn\n", milliseconds(fleets[0].last/churnTurn), milliseconds(fleets[1].last/churnTurn))
	goal(fmt.Sprintf("CPU of a provision with %d entries, omit_crl %v, at most %.1f x that with none", churnEntries, omit, churnLoss), loss, loss <= churnLoss)
	return nil
}

// churn is a daemon with its own CA and a large store, and the callers' connection.
type churn struct {
	*daemon
	nodes   espmv1.NodeServiceClient
	conn    *grpc.ClientConn
	entries int
	last    time.Duration // the CPU time of the last turn
}

func (l lab) churn(ctx context.Context, filled string, entries int) (*churn, error) {
	d, err := l.initialize(ctx, fmt.Sprintf("churn-%d", entries)) // with an EC key, as the time of an RSA signature would hide the cost of the CRL
	if err != nil {
		return nil, err
	}
	if err := (past{first: longSerial, issued: entries, revoked: entries}).write(d.ca()); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "cp", filled, d.store()).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cp: %w\n%s", err, out)
	}
	f := &churn{daemon: d, entries: entries}
	if err := d.start(ctx); err != nil {
		return f, err
	}
	f.conn, err = d.dial()
	f.nodes = espmv1.NewNodeServiceClient(f.conn)
	return f, err
}

func (f *churn) stop() error {
	if f.conn != nil {
		f.conn.Close()
	}
	return f.daemon.stop()
}

// provisions provisions n nodes, one after the other, and returns the daemon's CPU time.
func (f *churn) provisions(ctx context.Context, n int, omit bool) (time.Duration, error) {
	took, err := baseFleet{daemon: f.daemon}.cpu(func() error {
		for range n {
			if _, err := f.provision(ctx, omit); err != nil {
				return err
			}
		}
		return nil
	})
	f.last = took
	return took, err
}

func (f *churn) provision(ctx context.Context, omit bool) (*espmv1.Node, error) {
	req := provisionRequest(newName())
	req.Certificate.OmitCrl = omit
	p, err := f.nodes.ProvisionNode(ctx, req, grpc.MaxCallRecvMsgSize(1<<30), grpc.ForceCodecV2(nodeOnly{encoding.GetCodecV2("proto")}))
	return p.GetNode(), err
}

// run makes all callers provision and terminate for the given time, and reports the daemon's memory.
func (f *churn) run(ctx context.Context, span time.Duration) error {
	fmt.Printf("\nChurn: %d callers provision and terminate for %v; store of %d nodes, CRL of %d entries at first\n", churnCallers, span, churnNodes, f.entries)
	end := time.Now().Add(span)
	var lives atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, churnCallers)
	for c := range churnCallers {
		wg.Go(func() {
			for errs[c] == nil && time.Now().Before(end) {
				errs[c] = f.life(ctx)
				lives.Add(1)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var highest int64
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		case <-time.After(time.Second):
		}
		now, err := f.memory("RssAnon")
		if err != nil {
			return err
		}
		highest = max(highest, now)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	now, err := f.memory("RssAnon")
	if err != nil {
		return err
	}
	entries := int64(f.entries) + lives.Load()
	fmt.Printf("%d lives; anonymous memory at the end %.0f MB, at most %.0f MB\n", lives.Load(), float64(now)/1e6, float64(highest)/1e6)
	limit := churnMemory + churnEntry*entries
	goal(fmt.Sprintf("anonymous memory at the end, of %.0f MB", float64(limit)/1e6), float64(now)/1e6, now <= limit)
	return nil
}

func (f *churn) life(ctx context.Context) error {
	n, err := f.provision(ctx, false)
	if err != nil {
		return err
	}
	_, err = f.nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: n.GetCertname(), Uid: n.GetUid()})
	return err
}

// memory returns a field of /proc/PID/status, in bytes. RssAnon is the daemon's memory without mapped
// files.
func (d *daemon) memory(field string) (int64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if kib, found := strings.CutPrefix(line, field+":"); found {
			n, err := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("the kernel tells no %s", field)
}

// nodeOnly decodes only the node of a ProvisionNodeResponse, which is the first field, and not the CRL.
// The callers run beside the daemon, and would use its cores.
type nodeOnly struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c nodeOnly) Unmarshal(data mem.BufferSlice, v any) error {
	answer, ok := v.(*espmv1.ProvisionNodeResponse)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	first := data[0].ReadOnlyData()
	field, kind, n := protowire.ConsumeTag(first)
	if n < 0 || field != 1 || kind != protowire.BytesType {
		return errors.New("the answer does not begin with the node")
	}
	text, n := protowire.ConsumeBytes(first[n:])
	if n < 0 {
		return protowire.ParseError(n)
	}
	answer.Node = &espmv1.Node{}
	return proto.Unmarshal(text, answer.Node)
}
