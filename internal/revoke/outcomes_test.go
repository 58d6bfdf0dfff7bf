package revoke_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// What the authority can never revoke is closed with its reason. It is not pending any more, so it holds up no
// successor; its certificate is marked, and the other orders of the batch have their receipts.
func TestImpossibleRevocation(t *testing.T) {
	s := newStore(t)
	var bad node.Serial
	q := newQueue(s, authority(func(targets []ca.Target) error {
		refused := &ca.RefusedError{Targets: make([]error, len(targets))}
		for i, target := range targets {
			if target.Serial == bad {
				refused.Targets[i] = fmt.Errorf("serial %s: %w: another one stands there", bad, ca.ErrImpossible)
				return refused
			}
		}
		return nil
	}))
	revs := []node.Revocation{order(t, s, q, "web1.test"), order(t, s, q, "web1.test")}
	bad = revs[1].Serial
	c := store.NewChange()
	c.Unaudited()
	c.PutCertificate(node.Certificate{Serial: bad, Certname: "web1.test", UID: "uid", Revocation: revs[1].ID})
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go q.Run(ctx)
	limit, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	got, err := q.Wait(limit, revs)
	if err != nil || got[0].Receipt == nil || got[1].Receipt != nil || got[1].Impossible == nil || got[1].Open() {
		t.Fatalf("got %+v, %v", got, err)
	}
	if reason := got[1].Impossible.Reason; !strings.Contains(reason, string(bad)) || !strings.Contains(reason, "another one stands there") {
		t.Errorf("the reason is %q", reason)
	}
	if pending, err := s.PendingOf(t.Context(), "web1.test"); err != nil || len(pending) != 0 {
		t.Errorf("pending: %+v, %v", pending, err)
	}
	page, err := s.Revocations(t.Context(), store.RevocationFilter{Impossible: true}, "", 10)
	if err != nil || len(page.Items) != 1 || page.Items[0].ID != revs[1].ID {
		t.Errorf("impossible: %+v, %v", page.Items, err)
	}
	if n, err := s.CountImpossible(t.Context()); err != nil || n != 1 {
		t.Errorf("%d impossible, %v", n, err)
	}
	if cert, err := s.Certificate(t.Context(), bad); err != nil || !cert.Impossible || cert.Receipt != nil || cert.Revocation != revs[1].ID {
		t.Errorf("the certificate: %+v, %v", cert, err)
	}
	for what, call := range map[string]func() error{
		"retry": func() error { _, err := q.Retry(t.Context(), revs[1].ID); return err },
		"drop":  func() error { _, err := q.Drop(t.Context(), revs[1].ID, "x"); return err },
	} {
		if err := call(); !errors.Is(err, node.ErrRevocationClosed) || !strings.Contains(err.Error(), "another one stands there") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// An order for a serial that no CRL can list is closed, and the authority is not asked for it. The others of the batch
// are carried out.
func TestUnlistableSerial(t *testing.T) {
	s := newStore(t)
	q := newQueue(s, authority(func(targets []ca.Target) error {
		if len(targets) != 1 {
			t.Errorf("asked for %d", len(targets))
		}
		return nil
	}))
	c := store.NewChange()
	c.Unaudited()
	long := q.Order(c, node.Revocation{Serial: node.Serial("01" + strings.Repeat("00", 20)), Certname: "long.test", UID: "uid"})
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	good := order(t, s, q, "good.test")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go q.Run(ctx)
	got, err := q.Wait(ctx, []node.Revocation{long, good})
	if err != nil || got[0].Impossible == nil || !strings.Contains(got[0].Impossible.Reason, "20 octets") || got[1].Receipt == nil {
		t.Errorf("got %+v, %v", got, err)
	}
}
