package directory

import (
	"context"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// serialKey is a serial number of at most 20 octets, which is RFC 5280's
// limit, to the right. Without pointers, a large map of them is small, and
// nothing to the garbage collector.
type serialKey [20]byte

// keyOf returns the key of a serial; false for one that no certificate may have.
func keyOf(n *big.Int) (serialKey, bool) {
	var key serialKey
	if n.Sign() < 0 || n.BitLen() > 8*len(key) {
		return key, false
	}
	n.FillBytes(key[:])
	return key, true
}

// keyOfBytes does the same for the contents of a DER INTEGER.
func keyOfBytes(b []byte) (serialKey, bool) {
	var key serialKey
	if len(b) > 0 && b[0] == 0 {
		b = b[1:]
	} else if len(b) == 0 || b[0]&0x80 != 0 {
		return key, false
	}
	if len(b) > len(key) {
		return key, false
	}
	copy(key[len(key)-len(b):], b)
	return key, true
}

func keyOfSerial(s node.Serial) (serialKey, bool) {
	n, ok := s.Int()
	if !ok {
		return serialKey{}, false
	}
	return keyOf(n)
}

// end is when a listed certificate ends, in Unix seconds, or one of these.
type end int64

const (
	unknownEnd end = 0
	noEnd      end = -1 // the inventory has been asked, and does not know
)

func endOf(t time.Time) end { return end(max(t.Unix(), 1)) }

// before reports whether the certificate has ended by t, for certain.
func (e end) before(t time.Time) bool { return e > 0 && int64(e) < t.Unix() }

// listing is what the CA's own CRL lists, and when each certificate ends.
// Whoever holds crlKeeper.revoking changes it; anybody reads it.
type listing struct {
	mu   sync.RWMutex
	ends map[serialKey]end
}

func (l *listing) has(key serialKey) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	_, ok := l.ends[key]
	return ok
}

// change applies what a new CRL has more and less than the last.
func (l *listing) change(d delta) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ends == nil {
		l.ends = make(map[serialKey]end, len(d.added))
	}
	for _, key := range d.added {
		if _, ok := l.ends[key]; !ok {
			l.ends[key] = unknownEnd
		}
	}
	for _, key := range d.removed {
		delete(l.ends, key)
	}
}

// setEnd notes when a listed certificate ends.
func (l *listing) setEnd(key serialKey, e end) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.ends[key]; ok {
		l.ends[key] = e
	}
}

func (l *listing) end(key serialKey) end {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.ends[key]
}

// setEnds notes when those certificates end that are listed and still unknown.
func (l *listing) setEnds(wanted map[serialKey]bool, found map[serialKey]end) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key := range wanted {
		if e, ok := l.ends[key]; !ok || e != unknownEnd {
			continue
		}
		if e, ok := found[key]; ok {
			l.ends[key] = e
		} else {
			l.ends[key] = noEnd
		}
	}
}

// endedBefore returns the serials whose certificates have ended by t.
func (l *listing) endedBefore(t time.Time) []serialKey {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var keys []serialKey
	for key, e := range l.ends {
		if e.before(t) {
			keys = append(keys, key)
		}
	}
	return keys
}

// unknown returns the serials of which it isn't known when they end.
func (l *listing) unknown() map[serialKey]bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	keys := make(map[serialKey]bool)
	for key, e := range l.ends {
		if e == unknownEnd {
			keys[key] = true
		}
	}
	return keys
}

// delta is what a CRL has more and less than the one before.
type delta struct {
	added, removed []serialKey
}

// Listed returns the number of the CA's CRL if that lists a serial, else "". Its copies may not
// do so yet. The file is looked at only where a write of it failed, so that it may hold what was not to be.
func (a *crlKeeper) Listed(ctx context.Context, serial node.Serial) (string, error) {
	a.revoking.Lock()
	defer a.revoking.Unlock()
	if err := ctx.Err(); err != nil {
		return "", unavailable(err)
	}
	if a.unsynced && !a.revoked(serial) {
		if _, err := a.look(true); err != nil {
			return "", fmt.Errorf("CRL: %w", err)
		}
	}
	if !a.revoked(serial) {
		return "", nil
	}
	return a.crl.Load().number.String(), nil
}
