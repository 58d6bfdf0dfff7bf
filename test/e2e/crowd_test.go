package e2e

import (
	"context"
	"fmt"
	"math/big"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	crowdSize    = 1000
	crowdCallers = 64
	crowdLimit   = 5 * time.Minute // of provisioning it, and of terminating it
)

// A node that is terminated together with 1,000 others is refused as fast as a single one. Each is
// revoked once.
func (s *lifecycle) terminatedAmongOthers(t *testing.T) {
	node, uid := s.espm.provision(t, "web5.example.com", "--class", greeting("hello"), "--parameter", `datacenter="east"`)
	stays, _ := s.espm.provision(t, "web6.example.com")
	node.run(t).exits(t, changed)
	check(t, s.server.ask(node.certificate(t)))
	c := newCrowd(t, s.lab)
	c.provision(t)
	middle := crowdSize / 2
	c.names = slices.Insert(c.names, middle, node.certname)
	c.uids = slices.Insert(c.uids, middle, uid)

	begin := time.Now()
	gone := make(chan departure, 1)
	ended := make(chan error, 1)
	go func() { ended <- c.terminate(t.Context(), middle, gone) }()
	var left departure
	select {
	case left = <-gone:
	case err := <-ended:
		t.Fatalf("%s was not terminated: %v", node.certname, err)
	}
	s.server.refuses(t, node)
	took, receipts := time.Since(left.at), c.receipts.Load()
	check(t, s.server.ask(stays.certificate(t)))
	check(t, <-ended)

	t.Logf("%s: refused %v after terminate returned; of the %d others %d had their receipts then, and %d when it was refused; the last after %v",
		node.certname, took.Round(time.Millisecond), crowdSize, left.receipts, receipts, time.Since(begin).Round(time.Millisecond))
	if took > revokedWithin {
		t.Errorf("%s was refused %v after terminate returned, want %v at most", node.certname, took, revokedWithin)
	}
	if left.receipts >= crowdSize {
		t.Errorf("%s was not terminated among the others", node.certname)
	}
	node.run(t).exits(t, runFailed).says(t, "alert certificate")
	s.listsOnce(t, c.revoked(t))
}

// crowd are nodes that are provisioned and terminated together.
type crowd struct {
	client      espmv1.NodeServiceClient
	names, uids []string
	receipts    atomic.Int64 // of terminates that waited for theirs
}

// departure is when a terminate returned, and how many others had their receipts then.
type departure struct {
	at       time.Time
	receipts int64
}

func newCrowd(t *testing.T, l *lab) *crowd {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(l.Dir, "run/espm.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	t.Cleanup(func() { check(t, conn.Close()) })
	c := &crowd{client: espmv1.NewNodeServiceClient(conn), uids: make([]string, crowdSize)}
	for i := range crowdSize {
		c.names = append(c.names, fmt.Sprintf("crowd%d.example.com", i))
	}
	return c
}

// each calls for every node, from many callers at once, in order, until one fails.
func (c *crowd) each(ctx context.Context, call func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithTimeout(ctx, crowdLimit)
	defer cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	failed := make(chan error, crowdCallers)
	for range crowdCallers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(c.names); i = int(next.Add(1)) - 1 {
				if err := call(ctx, i); err != nil {
					failed <- fmt.Errorf("%s: %w", c.names[i], err)
					cancel()
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func (c *crowd) provision(t *testing.T) {
	t.Helper()
	begin := time.Now()
	check(t, c.each(t.Context(), func(ctx context.Context, i int) error {
		resp, err := c.client.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{
			Node:        &espmv1.Node{Certname: c.names[i]},
			Certificate: &espmv1.CertificateSpec{KeyAlgorithm: "ec-p256"},
		})
		c.uids[i] = resp.GetNode().GetUid()
		return err
	}))
	t.Logf("%d nodes provisioned after %v", len(c.names), time.Since(begin).Round(time.Millisecond))
}

// terminate terminates all nodes. Each caller waits for the receipt before it
// continues, except for one node, whose departure terminate returns.
func (c *crowd) terminate(ctx context.Context, one int, gone chan<- departure) error {
	return c.each(ctx, func(ctx context.Context, i int) error {
		req := &espmv1.TerminateNodeRequest{Certname: c.names[i], Uid: c.uids[i]}
		if i == one {
			_, err := c.client.TerminateNode(ctx, req)
			if err == nil {
				gone <- departure{time.Now(), c.receipts.Load()}
			}
			return err
		}
		req.Wait = durationpb.New(time.Minute)
		resp, err := c.client.TerminateNode(ctx, req)
		if err != nil {
			return err
		}
		c.receipts.Add(1)
		return hasReceipt(resp)
	})
}

func hasReceipt(resp *espmv1.TerminateNodeResponse) error {
	revs := resp.GetRevocations()
	if len(revs) != 1 || revs[0].GetState() != espmv1.RevocationState_REVOCATION_STATE_REVOKED || revs[0].GetCrlNumber() == "" || resp.GetIssueOpen() {
		return fmt.Errorf("no receipt: %v", resp)
	}
	return nil
}

// revoked asks for every receipt once more and returns the serials.
func (c *crowd) revoked(t *testing.T) (serials []string) {
	t.Helper()
	serials = make([]string, len(c.names))
	check(t, c.each(t.Context(), func(ctx context.Context, i int) error {
		resp, err := c.client.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: c.names[i], Uid: c.uids[i], Wait: durationpb.New(time.Minute)})
		if err != nil {
			return err
		}
		serials[i] = resp.GetNode().GetSerial()
		return hasReceipt(resp)
	}))
	return serials
}

// listsOnce checks that openssl finds each serial on the published CRL, once.
func (s *lifecycle) listsOnce(t *testing.T, serials []string) {
	t.Helper()
	r := run(t, time.Minute, exec.Command("openssl", "crl", "-in", s.CRL, "-noout", "-text"))
	if r.code != 0 {
		t.Fatalf("openssl crl: exit %d\n%s", r.code, r.stderr)
	}
	listed := map[string]int{}
	for line := range strings.Lines(r.stdout) {
		if serial, ok := strings.CutPrefix(strings.TrimSpace(line), "Serial Number: "); ok {
			listed[number(t, serial)]++
		}
	}
	for _, serial := range serials {
		if n := listed[number(t, serial)]; n != 1 {
			t.Errorf("the CRL lists serial %s %d times", serial, n)
		}
	}
	t.Logf("the CRL lists %d certificates, each of the %d once", len(listed), len(serials))
}

// number returns a hexadecimal number in its shortest form, so that serials can be compared.
func number(t *testing.T, hexadecimal string) string {
	t.Helper()
	n, ok := new(big.Int).SetString(hexadecimal, 16)
	if !ok {
		t.Fatalf("%q is no serial number", hexadecimal)
	}
	return n.Text(16)
}
