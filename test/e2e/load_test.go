package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	callers    = 6
	callLimit  = 20 * time.Second // of a caller's one try
	loadSettle = 4 * time.Minute  // the longest that callers insist on an answer after the faults
)

// load are callers that provision and terminate through the API, each asking again until
// it has an answer, as a control plane does. Some give up, and then nobody holds the certificate.
type load struct {
	name    string // part of the certnames, and of the request ids
	seed    uint64
	conn    *grpc.ClientConn
	callers [callers]caller
	cancel  context.CancelFunc
	stop    chan struct{}
	wg      sync.WaitGroup
	lives   atomic.Int64 // that came to their end
}

// caller is what one of them was told.
type caller struct {
	alive                  map[node.Certname]*espmv1.Node
	gone                   []*espmv1.TerminateNodeResponse
	provisions, terminates int
	foreign                int // names given up for what stood under them at the CA
}

func (s *ownCA) startLoad(t *testing.T, name string, seed uint64) *load {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(s.Dir, "run/espm.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	l := &load{name: name, seed: seed, conn: conn, stop: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	t.Cleanup(func() { cancel(); l.wg.Wait() }) // where the test does not come to its end
	for i := range callers {
		l.wg.Go(func() { l.callers[i].run(ctx, t, l, i) })
	}
	return l
}

// end lets every caller come to the end of the life that it is at.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	overdue := time.AfterFunc(loadSettle, l.cancel)
	l.wg.Wait()
	overdue.Stop()
	l.cancel()
	check(t, l.conn.Close())
}

func (l *load) ended() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// run provisions and terminates; a name has three lives, and the third stays alive.
func (c *caller) run(ctx context.Context, t *testing.T, l *load, id int) {
	random := rand.New(rand.NewPCG(l.seed, uint64(id)))
	client := espmv1.NewNodeServiceClient(l.conn)
	c.alive = map[node.Certname]*espmv1.Node{}
	for life := 0; !l.ended(); life++ {
		name := fmt.Sprintf("%s%d-%d.example.com", l.name, id, life/3)
		req := &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: name}, RequestId: fmt.Sprintf("%s-%d-%d", l.name, id, life)}
		if random.IntN(2) == 0 {
			req.Certificate = &espmv1.CertificateSpec{CsrPem: makeCSR(t, name, newKey(t))}
		}
		if random.IntN(10) == 0 { // it asks once, and nobody uses the name again
			req.Node.Certname = fmt.Sprintf("%s%d-%d-lost.example.com", l.name, id, life)
			req.Certificate = nil
			_, _ = client.ProvisionNode(ctx, req)
			continue
		}
		var n *espmv1.Node
		asking, cancel := c.patience(ctx, l, id)
		err := insist(asking, func(ctx context.Context) error {
			resp, err := client.ProvisionNode(ctx, req)
			n = resp.GetNode()
			return err
		})
		given := asking.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && given {
			life += 2 - life%3
			continue
		}
		if foreign(err) {
			c.foreign++
			t.Logf("%s: %v", name, err)
			life += 2 - life%3 // an admin has to look at it; on to the next name
			continue
		}
		if err != nil {
			t.Errorf("provision %s: %v", name, err)
			return
		}
		c.provisions++
		c.alive[node.Certname(name)] = n
		if life%3 == 2 {
			continue
		}
		end := &espmv1.TerminateNodeRequest{Certname: name, Uid: n.GetUid(), Wait: durationpb.New(time.Duration(random.IntN(3)) * time.Second)}
		var dead *espmv1.TerminateNodeResponse
		err = insist(ctx, func(ctx context.Context) (err error) {
			dead, err = client.TerminateNode(ctx, end)
			return err
		})
		if err != nil {
			t.Errorf("terminate %s: %v", name, err)
			return
		}
		c.terminates++
		l.lives.Add(1)
		delete(c.alive, node.Certname(name))
		c.gone = append(c.gone, dead)
	}
}

// patience is how long a caller insists on a name. What of an issue may still be
// under way at the CA when espm is killed is waited for longer than espm mostly
// lives here; so half of the callers go on to another name.
func (c *caller) patience(ctx context.Context, l *load, id int) (context.Context, context.CancelFunc) {
	if id%2 == 0 || l.ended() {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, callLimit/2)
}

// insist asks until there is an answer.
func insist(ctx context.Context, call func(ctx context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, callLimit)
		err := call(limited)
		cancel()
		switch status.Code(err) {
		case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded:
		default:
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// foreign says whether an error is that at the CA a request has the name that espm does
// not know, as one that came late. A certificate never is: espm frees the name of each of its own.
func foreign(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason() == "REQUEST_FOREIGN"
		}
	}
	return false
}
