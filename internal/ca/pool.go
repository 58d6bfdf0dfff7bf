package ca

import (
	"context"
	"crypto"
	"fmt"
	"slices"
	"sync"
)

// Pool keeps ready RSA keys in memory, so that a caller need not wait a
// second or more for one. Nothing of it is ever written down. EC keys cost
// microseconds and are generated when they are taken.
//
// An algorithm's stock is filled from its first NewKey on, or from the start
// where NewPool was told to. One goroutine fills, and one caller at a time
// generates for itself when a stock is empty: however many wait, the pool
// never takes more than two cores.
type Pool struct {
	capacity int
	generate func(KeyAlgorithm) (crypto.Signer, error)
	cancel   context.CancelFunc
	done     chan struct{} // closed when the filler has gone
	wake     chan struct{} // holds one: there may be something to fill
	turn     chan struct{} // holds one: the right to generate for oneself

	mu     sync.Mutex
	stocks map[KeyAlgorithm]*stock
}

// stock is one algorithm's ready keys.
type stock struct {
	ready         chan crypto.Signer
	filling       bool // once wanted, kept full
	taken, waited uint64
}

// PoolStats is one algorithm's state and counters since the start.
type PoolStats struct {
	Ready    int    // keys that wait to be taken
	Capacity int    // bound of Ready; 0 for EC
	Taken    uint64 // keys handed out
	Waited   uint64 // of these, how many were generated while the caller waited
}

// NewPool starts a pool of up to size keys an algorithm, until ctx ends or Close.
// The stocks of prefill fill at once, the first named first.
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

// Close stops the filler and waits for it to be gone; a key in the making is
// finished first. Ready keys can still be taken.
func (p *Pool) Close() {
	p.cancel()
	<-p.done
}

// NewKey returns a key that nobody else has, a *Key: a ready one, or else the
// first of a new one and one that turns up meanwhile. It gives up waiting when
// ctx ends.
func (p *Pool) NewKey(ctx context.Context, alg KeyAlgorithm) (crypto.Signer, error) {
	s, ok := p.stocks[alg]
	if !ok {
		return nil, fmt.Errorf("take key: unknown algorithm %q", alg)
	}
	if s.ready == nil {
		k, err := p.generate(alg)
		return p.count(s, k, err, false)
	}
	p.mu.Lock()
	s.filling = true
	p.mu.Unlock()
	defer p.stir()
	select {
	case k := <-s.ready: // ahead of the race below, which a ready key might lose
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
		return nil, fmt.Errorf("take %s key: %w", alg, ctx.Err())
	}
}

// count books a key that goes to a caller.
func (p *Pool) count(s *stock, k crypto.Signer, err error, waited bool) (crypto.Signer, error) {
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.taken++
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
		stats[alg] = PoolStats{Ready: len(s.ready), Capacity: cap(s.ready), Taken: s.taken, Waited: s.waited}
	}
	return stats
}

// String tells the sizes, never a key.
func (p *Pool) String() string { return fmt.Sprintf("key pool %v", p.Stats()) }

// GoString tells the sizes, never a key.
func (p *Pool) GoString() string { return p.String() }

// stir tells the filler that there may be something to do.
func (p *Pool) stir() {
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
			if !p.rest(ctx) {
				return
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if k, err := p.generate(alg); err == nil {
			s.ready <- k // only this goroutine adds, so there is room
			continue
		}
		// Not without a pause: the next NewKey meets the error and reports it.
		if !p.rest(ctx) {
			return
		}
	}
}

// rest waits until something was taken; false when ctx has ended.
func (p *Pool) rest(ctx context.Context) bool {
	select {
	case <-p.wake:
		return true
	case <-ctx.Done():
		return false
	}
}

// emptiest returns the stock with the fewest keys among those that want some;
// nil if all are full.
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
