package directory

import (
	"context"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// serialKey is a serial number, right-aligned in 20 octets, the limit of RFC 5280.
// A map of them has no pointers, so it needs little memory, and the garbage collector does not
// scan it.
type serialKey [20]byte

// keyOf returns the key of a serial, or false if no certificate may have that serial.
func keyOf(n *big.Int) (serialKey, bool) {
	var key serialKey
	if n.Sign() < 0 || n.BitLen() > 8*len(key) {
		return key, false
	}
	n.FillBytes(key[:])
	return key, true
}

// keyOfBytes is keyOf for the contents of a DER INTEGER.
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

// end is when a listed certificate ends, in Unix seconds, or one of the constants below.
type end int64

const (
	unknownEnd end = 0
	noEnd      end = -1 // the inventory does not have the certificate
)

func endOf(t time.Time) end { return end(max(t.Unix(), 1)) }

// before reports whether the certificate is known to have ended before t.
func (e end) before(t time.Time) bool { return e > 0 && int64(e) < t.Unix() }

// listing has the serials in the CA's own CRL, and when their certificates end.
// Only the holder of crlKeeper.revoking may change it.
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

// change applies the difference between a new CRL and the last.
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

// setEnd stores when a listed certificate ends.
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

// setEnds stores the ends of the wanted certificates that are listed and whose end is unknown.
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

// endedBefore returns the serials of the certificates that ended before t.
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

// unknown returns the serials of the certificates whose end is unknown.
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

// delta is the difference between a CRL and the one before.
type delta struct {
	added, removed []serialKey
}

// Listed returns the number of the CA's CRL if the CRL lists the serial, else "". The published copies may
// be older. Listed reads the file only after a failed write, as the file may have the new CRL nevertheless.
func (a *crlKeeper) Listed(ctx context.Context, serial node.Serial) (string, error) {
	a.revoking.Lock()
	defer a.revoking.Unlock()
	if err := ctx.Err(); err != nil {
		return "", unavailable(err)
	}
	if a.unsynced && !a.revoked(serial) {
		if _, err := a.checkFiles(true); err != nil {
			return "", fmt.Errorf("CRL: %w", err)
		}
	}
	if !a.revoked(serial) {
		return "", nil
	}
	return a.crl.Load().number.String(), nil
}
