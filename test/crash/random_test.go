package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/health"
	"github.com/espm-project/espm/test/testbed"
)

// Counts of the random crash test.
const (
	callers   = 8
	lives     = 30 // at least, of each caller's names: a provision, and mostly a terminate
	leastKill = 20
)

// TestKilledUnderLoad kills a real daemon at random moments while callers
// provision and terminate. Each caller retries until it has an answer, like a
// control plane. Some give up: then the certificate must be revoked.
func TestKilledUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("-short leaves out a daemon under load")
	}
	dir := testbed.Dir(t)
	newCA(t, dir)
	d := &target{dir: dir, binary: filepath.Join(testbed.Build(t, "cmd/espm"), "espm")}
	d.configure(t)
	d.start(t)
	ctx, cancel := context.WithTimeout(node.AsSelf(t.Context()), 4*time.Minute)
	defer cancel()

	var wg, killing sync.WaitGroup
	var busy atomic.Bool
	busy.Store(true)
	histories := make([]history, callers)
	for i := range callers {
		wg.Go(func() { histories[i].live(ctx, t, d, i) })
	}
	killing.Go(func() {
		for busy.Load() {
			if done := d.answered.Load(); rand.N(4) > 0 { // some kills come while it starts, most while it works
				for began := time.Now(); busy.Load() && d.answered.Load() == done && time.Since(began) < 20*time.Second; {
					pause(ctx, 5*time.Millisecond)
				}
			}
			pause(ctx, 20*time.Millisecond+rand.N(300*time.Millisecond))
			d.kill(t)
			d.start(t)
		}
	})
	wg.Wait()
	busy.Store(false)
	killing.Wait()
	d.stop(t)

	w, err := open(dir, unwrapped, durable.OS)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close(t)
	run, end := context.WithCancel(node.AsSelf(t.Context()))
	defer end()
	w.run(run)
	settled(t, w.store)
	crl := checkOrphans(t, dir, w.store)
	lines := checkAudit(t, w)
	var provisions, terminates int
	for i := range histories {
		histories[i].check(t, dir, w, crl)
		histories[i].checkLines(t, lines)
		provisions += histories[i].provisions
		terminates += histories[i].terminates
	}
	t.Logf("%d kills, %d provisions and %d terminates acknowledged, CRL number %v", d.kills.Load(), provisions, terminates, crl.number)
	if (provisions+terminates < 400 || d.kills.Load() < leastKill) && !t.Failed() {
		t.Errorf("only %d provisions and %d terminates", provisions, terminates)
	}
}

// target is a daemon that is killed and restarted.
type target struct {
	dir, binary string
	cmd         *exec.Cmd
	kills       atomic.Int64
	answered    atomic.Int64 // calls
}

func (d *target) address() string { return "unix://" + filepath.Join(d.dir, "espm.sock") }

func (d *target) configure(t *testing.T) {
	t.Helper()
	text := `store: {path: espm.db}
listen: unix://espm.sock
enc: {socket: enc.sock}
authority: {directory: {path: ca, publish: [crl.pem]}}
puppet: {server: puppet.test}
`
	if err := os.WriteFile(filepath.Join(d.dir, "espm.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (d *target) start(t *testing.T) {
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Error(err)
		return
	}
	defer log.Close()
	d.cmd = exec.Command(d.binary, "serve", "--config", filepath.Join(d.dir, "espm.yaml"))
	d.cmd.Stderr = log
	if err := d.cmd.Start(); err != nil {
		t.Error(err)
	}
}

func (d *target) kill(t *testing.T) {
	if err := d.cmd.Process.Kill(); err != nil {
		log, _ := os.ReadFile(filepath.Join(d.dir, "log"))
		t.Errorf("the daemon ended by itself: %v\n%s", err, log)
	}
	_ = d.cmd.Wait()
	d.kills.Add(1)
}

// stop stops the daemon in order, after it has begun to serve.
func (d *target) stop(t *testing.T) {
	conn, err := grpc.NewClient(d.address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(node.AsSelf(t.Context()), 30*time.Second)
	defer cancel()
	if err := health.Serves(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := d.cmd.Wait(); err != nil {
		log, _ := os.ReadFile(filepath.Join(d.dir, "log"))
		t.Errorf("an orderly stop: %v\n%s", err, log)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// history has the answers that one caller got.
type history struct {
	alive                  map[string]*espmv1.ProvisionNodeResponse
	gone                   []*espmv1.TerminateNodeResponse
	provisions, terminates int
}

// live provisions and terminates, and reuses names.
func (h *history) live(ctx context.Context, t *testing.T, d *target, id int) {
	conn, err := grpc.NewClient(d.address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	client := espmv1.NewNodeServiceClient(conn)
	h.alive = map[string]*espmv1.ProvisionNodeResponse{}
	for life := 0; life < lives || d.kills.Load() < leastKill && ctx.Err() == nil; life++ {
		name := fmt.Sprintf("n%d-%d.crash.test", id, life/3)
		req := &espmv1.ProvisionNodeRequest{
			Node:      &espmv1.Node{Certname: name},
			RequestId: fmt.Sprintf("%d-%d", id, life),
		}
		if life%2 == 1 {
			csr, _, err := newCSR(name)
			if err != nil {
				t.Error(err)
				return
			}
			req.Certificate = &espmv1.CertificateSpec{CsrPem: csr}
		}
		if life%10 == 9 { // gives up at the first failure; the name is not used again
			req.Node.Certname = fmt.Sprintf("given-up%d-%d.crash.test", id, life)
			req.Certificate = nil
			_, _ = client.ProvisionNode(ctx, req)
			continue
		}
		var resp *espmv1.ProvisionNodeResponse
		if !insist(ctx, t, func() (err error) { resp, err = client.ProvisionNode(ctx, req); return err }) {
			return
		}
		d.answered.Add(1)
		h.provisions++
		h.alive[name] = resp
		if life == lives-1 {
			continue
		}
		var dead *espmv1.TerminateNodeResponse
		if !insist(ctx, t, func() (err error) {
			dead, err = client.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: name, Uid: resp.GetNode().GetUid()})
			return err
		}) {
			return
		}
		d.answered.Add(1)
		h.terminates++
		delete(h.alive, name)
		h.gone = append(h.gone, dead)
	}
}

// insist retries a call until it has an answer. Only a daemon that is down may refuse.
func insist(ctx context.Context, t *testing.T, call func() error) bool {
	for {
		err := call()
		switch status.Code(err) {
		case codes.OK:
			return true
		case codes.Unavailable, codes.Aborted:
			pause(ctx, 10*time.Millisecond)
		default:
			t.Errorf("refused: %v", err)
			return false
		}
		if ctx.Err() != nil {
			t.Error("out of time: ", errors.Join(ctx.Err(), err))
			return false
		}
	}
}

// check checks that everything acknowledged is there.
func (h *history) check(t *testing.T, dir string, w *world, crl crlState) {
	t.Helper()
	for name, resp := range h.alive {
		n, err := w.store.Node(node.AsSelf(t.Context()), node.Certname(name))
		if err != nil || string(n.UID) != resp.GetNode().GetUid() || string(n.Newest()) != resp.GetNode().GetSerial() {
			t.Errorf("%q was acknowledged as %s; found %s, %v", name, resp.GetNode().GetSerial(), n.Newest(), err)
		}
		if err := verify(t, dir, resp.GetBundle().GetCertificatePem()); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, dead := range h.gone {
		uid, name := node.UID(dead.GetNode().GetUid()), node.Certname(dead.GetNode().GetCertname())
		if n, err := w.store.Node(node.AsSelf(t.Context()), name); err == nil && n.UID == uid {
			t.Errorf("%q, terminated as %s, lives", name, uid)
		}
		if len(dead.GetRevocations()) == 0 {
			t.Errorf("the terminate of %q, %s, ordered no revocation", name, uid)
		}
		for _, r := range dead.GetRevocations() {
			if !crl.revoked[node.Serial(strings.ToUpper(r.GetSerial()))] {
				t.Errorf("%s of terminated %q is not revoked", r.GetSerial(), name)
			}
		}
	}
}

// checkLines checks that each acknowledged change has one audit line.
func (h *history) checkLines(t *testing.T, lines map[subject]int) {
	t.Helper()
	for name, p := range h.alive {
		if n := lines[subject{node.ActionIssue, p.GetNode().GetSerial()}] + lines[subject{node.ActionSettle, p.GetNode().GetSerial()}]; n != 1 {
			t.Errorf("%s was provisioned, and has %d lines of that", name, n)
		}
	}
	for _, gone := range h.gone {
		if n := lines[subject{node.ActionTerminate, gone.GetNode().GetUid()}]; n != 1 {
			t.Errorf("%s was terminated, and has %d lines of that", gone.GetNode().GetCertname(), n)
		}
	}
}
