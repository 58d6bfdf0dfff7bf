package store

import (
	"context"
	"errors"
	"sync"

	"github.com/espm-project/espm/internal/node"
)

// Ordered are, in memory, the serials that have an order to revoke them without a receipt: open orders, and those
// that the CA can't carry out. A serial is there before the commit of its order returns. It leaves with the receipt,
// or if the order is dropped.
type Ordered struct {
	mu         sync.RWMutex
	serials    map[node.Serial]bool
	committing map[node.Serial]int // commits under way that order a serial
}

func newOrdered() *Ordered {
	return &Ordered{serials: map[node.Serial]bool{}, committing: map[node.Serial]int{}}
}

// Has reports whether a serial has an order.
func (o *Ordered) Has(serial node.Serial) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.serials[serial] || o.committing[serial] > 0
}

// Read takes the orders of the store. Orders that are committed meanwhile are kept.
func (o *Ordered) Read(ctx context.Context, v View) error {
	for _, filter := range []RevocationFilter{{Open: true}, {Impossible: true}} {
		for after := ""; ; {
			page, err := v.Revocations(ctx, filter, after, 1000)
			if err != nil {
				return err
			}
			o.mu.Lock()
			for _, r := range page.Items {
				o.serials[r.Serial] = true
			}
			o.mu.Unlock()
			if after = page.Next; after == "" {
				break
			}
		}
	}
	return nil
}

// begin counts the orders of a commit, and returns the function that ends the count with the commit's outcome. While
// the outcome is unknown, new orders count and closures do not: end waits for it in the background, until the engine
// knows it or closes.
func (o *Ordered) begin(orders []node.Revocation) (end func(err error)) {
	if len(orders) == 0 {
		return func(error) {}
	}
	o.count(orders, 1)
	return func(err error) {
		doubt, unknown := errors.AsType[*DoubtError](err)
		if !unknown {
			o.end(orders, err)
			return
		}
		go func() {
			if _, err := doubt.Settle(context.Background()); !errors.Is(err, ErrUnknownOutcome) {
				o.end(orders, err)
			}
		}()
	}
}

// end notes the outcome of a commit.
func (o *Ordered) end(orders []node.Revocation, err error) {
	if err == nil {
		o.mu.Lock()
		for _, r := range orders {
			if r.Receipt != nil || r.Drop != nil {
				delete(o.serials, r.Serial)
			} else {
				o.serials[r.Serial] = true
			}
		}
		o.mu.Unlock()
	}
	o.count(orders, -1)
}

func (o *Ordered) count(orders []node.Revocation, by int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range orders {
		if !r.Open() {
			continue
		}
		if o.committing[r.Serial] += by; o.committing[r.Serial] == 0 {
			delete(o.committing, r.Serial)
		}
	}
}
