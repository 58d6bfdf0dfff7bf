package ca

import (
	"context"
	"crypto"
	"fmt"
	"slices"
	"sync"
)

// Pool keeps ready RSA keys in memory, as generating one takes a
// second or more. The pool never writes a key to disk. EC keys take
// microseconds, so NewKey generates them on demand.
//
// The first NewKey of an algorithm starts to fill its stock; the stocks that NewPool names are
// filled from the start. One goroutine fills the stocks. If a stock is empty, one caller at a time
// generates its own key. So the pool uses at most two cores, however many callers wait.
type Pool struct {
	capacity int
	generate func(KeyAlgorithm) (crypto.Signer, error)
	cancel   context.CancelFunc
	done     chan struct{} // closed when the filler has ended
	wake     chan struct{} // of capacity 1: wakes the filler
	turn     chan struct{} // of capacity 1: a lock for callers that generate their own key

	mu     sync.Mutex
	stocks map[KeyAlgorithm]*stock
}

// stock is one algorithm's ready keys.
type stock struct {
	ready        chan crypto.Signer
	filling      bool // the filler keeps this stock full
	used, waited uint64
}

// PoolStats is one algorithm's state and counters since the start.
type PoolStats struct {
	Ready    int    // keys in the stock
	Capacity int    // the most that Ready can be; 0 for EC
	Used     uint64 // keys that callers got
	Waited   uint64 // of Used: generated while the caller waited
}

// NewPool starts a pool with up to size keys for each algorithm. The pool fills its stocks until ctx ends
// or Close is called. The stocks of prefill are filled from the start.
func NewPool(ctx context.Context, size int, prefill ...KeyAlgorithm) *Pool {
	return newPool(ctx, size, func(alg KeyAlgorithm) (crypto.Signer, error) { return GenerateKey(alg) }, prefill)
}

func newPool(ctx context.Context, size int, generate func(KeyAlgorithm) (crypto.Signer, error), prefill []KeyAlgorithm) *Pool {
	ctx, cancel := context.WithCancel(ctx)
	p := &Pool{
		capacity: max(size, 0),
		generate: generate,
		cancel:   cancel,
		done:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
		turn:     make(chan struct{}, 1),
		stocks:   make(map[KeyAlgorithm]*stock),
	}
	for _, alg := range KeyAlgorithms() {
		s := &stock{filling: slices.Contains(prefill, alg)}
		if alg != ECP256 {
			s.ready = make(chan crypto.Signer, p.capacity)
		}
		p.stocks[alg] = s
	}
	go p.fill(ctx)
	return p
}

// Close stops the filler and waits until it has ended; the filler finishes the key that it
// generates. NewKey still works.
func (p *Pool) Close() {
	p.cancel()
	<-p.done
}

// NewKey returns a key, a *Key, that no other caller gets. It returns a ready key if there is one.
// Else it returns the key that is ready first: the caller's own new one or one of the filler's. It returns an
// error when ctx ends.
func (p *Pool) NewKey(ctx context.Context, alg KeyAlgorithm) (crypto.Signer, error) {
	s, ok := p.stocks[alg]
	if !ok {
		return nil, fmt.Errorf("get a key: unknown algorithm %q", alg)
	}
	if s.ready == nil {
		k, err := p.generate(alg)
		return p.count(s, k, err, false)
	}
	p.mu.Lock()
	s.filling = true
	p.mu.Unlock()
	defer p.wakeFiller()
	select {
	case k := <-s.ready: // a ready key comes first; the select below chooses at random
		return p.count(s, k, nil, false)
	default:
	}
	select {
	case k := <-s.ready:
		return p.count(s, k, nil, false)
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
		k, err := p.generate(alg)
		return p.count(s, k, err, true)
	case <-ctx.Done():
		return nil, fmt.Errorf("get a %s key: %w", alg, ctx.Err())
	}
}

// count counts a key that NewKey returns.
func (p *Pool) count(s *stock, k crypto.Signer, err error, waited bool) (crypto.Signer, error) {
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.used++
	if waited {
		s.waited++
	}
	return k, nil
}

// Stats returns the state of every algorithm.
func (p *Pool) Stats() map[KeyAlgorithm]PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := make(map[KeyAlgorithm]PoolStats, len(p.stocks))
	for alg, s := range p.stocks {
		stats[alg] = PoolStats{Ready: len(s.ready), Capacity: cap(s.ready), Used: s.used, Waited: s.waited}
	}
	return stats
}

// String shows the counts, never a key.
func (p *Pool) String() string { return fmt.Sprintf("key pool %v", p.Stats()) }

// GoString tells the sizes, never a key.
func (p *Pool) GoString() string { return p.String() }

func (p *Pool) wakeFiller() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// fill keeps the stocks full, one key at a time, the emptiest first.
func (p *Pool) fill(ctx context.Context) {
	defer close(p.done)
	for {
		alg, s := p.emptiest()
		if s == nil {
			if !p.wait(ctx) {
				return
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if k, err := p.generate(alg); err == nil {
			s.ready <- k // never blocks: only this goroutine adds keys
			continue
		}
		// The pause avoids a busy loop. The next NewKey meets the error and reports it.
		if !p.wait(ctx) {
			return
		}
	}
}

// wait returns true when a caller wakes the filler, false when ctx has ended.
func (p *Pool) wait(ctx context.Context) bool {
	select {
	case <-p.wake:
		return true
	case <-ctx.Done():
		return false
	}
}

// emptiest returns the stock with the fewest keys among those to be filled, nil if all are full.
func (p *Pool) emptiest() (KeyAlgorithm, *stock) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *stock
	var name KeyAlgorithm
	for _, alg := range KeyAlgorithms() {
		s := p.stocks[alg]
		if s.filling && len(s.ready) < cap(s.ready) && (best == nil || len(s.ready) < len(best.ready)) {
			best, name = s, alg
		}
	}
	return name, best
}
