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

// begin notes the orders of a commit, and returns the function that notes its outcome. While the outcome of a commit
// is unknown, its orders count and its closures do not.
func (o *Ordered) begin(orders []node.Revocation) (end func(err error)) {
	o.count(orders, 1)
	return func(err error) {
		unknown := errors.Is(err, ErrUnknownOutcome)
		o.mu.Lock()
		for _, r := range orders {
			switch done := r.Receipt != nil || r.Drop != nil; {
			case !done && (err == nil || unknown):
				o.serials[r.Serial] = true
			case done && err == nil:
				delete(o.serials, r.Serial)
			}
		}
		o.mu.Unlock()
		o.count(orders, -1)
	}
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
