package crash

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// dropAll is the child that orders and drops revocations. At each kill, an
// admin waits for the drop of the open revocation.
func dropAll(ctx context.Context, w *world, k *killer) error {
	k.last = func() {
		pending, err := w.store.Pending(ctx, "", 1)
		if err != nil || len(pending) == 0 {
			return
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, err := w.queue.Drop(short, pending[0].ID, "it was found again"); err == nil {
			fmt.Println("dropped", pending[0].ID)
		}
	}
	if _, err := w.provision(ctx, "web.test", nil, w.registry); err != nil {
		return err
	}
	revs, err := w.registry.Revoke(ctx, registry.RevokeRequest{Certname: "web.test"}, 0, false)
	if err != nil {
		return err
	}
	if _, err := w.queue.Drop(ctx, revs[0].ID, "a mistake"); err != nil {
		return err
	}
	fmt.Println("dropped", revs[0].ID)
	go w.queue.Run(ctx)
	_, err = w.registry.Revoke(ctx, registry.RevokeRequest{Certname: "web.test"}, time.Minute, false)
	return err
}

// The process is killed before and after each durable step of a revocation that is dropped. After it, the node has
// a valid certificate or none.
func TestDropKilledAtEachStep(t *testing.T) {
	steps := killEachStep(t, killDropAt)
	if !t.Failed() && steps < 20 {
		t.Errorf("only %d kills: the child has more durable steps than that", steps)
	}
	t.Logf("%d kills", steps)
}

func killDropAt(t *testing.T, at int, when string) bool {
	dir := t.TempDir()
	newCA(t, dir)
	ctx, cancel := context.WithTimeout(node.AsSelf(t.Context()), time.Minute)
	defer cancel()
	out, killed := runChild(ctx, t, dir, "drop", at, when)
	w, err := open(dir, unwrapped, durable.OS)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close(t)
	dropped := dropPending(t, w, dir)
	for line := range strings.Lines(string(out)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "dropped "); ok {
			dropped = append(dropped, id)
		}
	}
	w.run(ctx)
	settled(t, w.store)
	crl := checkOrphans(t, dir, w.store)
	checkAudit(t, w)
	for _, id := range dropped {
		if r, err := w.store.Revocation(ctx, id); err != nil || r.Drop == nil || r.Receipt != nil {
			t.Errorf("%s was dropped: found %+v, %v", id, r, err)
		}
	}
	n, err := w.store.Node(ctx, "web.test")
	if err != nil || n.Newest() == "" {
		if len(dropped) > 0 && len(crl.revoked) == 0 {
			t.Errorf("nothing is revoked, and the node holds nothing: %+v, %v", n, err)
		}
		return killed
	}
	cert, err := w.store.Certificate(ctx, n.Newest())
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, dir, []byte(cert.PEM)); err != nil || cert.Revocation != "" {
		t.Errorf("the node's certificate has the revocation %q: %v", cert.Revocation, err)
	}
	return killed
}

// dropPending drops the open revocations before the worker runs, and returns those that it could drop.
func dropPending(t *testing.T, w *world, dir string) (dropped []string) {
	t.Helper()
	pending, err := w.store.Pending(node.AsSelf(t.Context()), "", 10)
	if err != nil {
		t.Fatal(err)
	}
	listed := readCRL(t, filepath.Join(dir, "ca", "ca_crl.pem")).revoked
	for _, r := range pending {
		_, err := w.queue.Drop(node.AsSelf(t.Context()), r.ID, "it was found again")
		if err == nil {
			dropped = append(dropped, r.ID)
		}
		if (err == nil) == listed[r.Serial] || err != nil && !errors.Is(err, node.ErrRevocationClosed) {
			t.Errorf("dropped where the CRL lists it %v: %v", listed[r.Serial], err)
		}
	}
	return dropped
}
