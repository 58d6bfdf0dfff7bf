package directory

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

type serialKey = pemfile.SerialKey

func keyOfSerial(s node.Serial) (serialKey, bool) {
	n, ok := s.Int()
	if !ok {
		return serialKey{}, false
	}
	return pemfile.KeyOf(n)
}

// end is when a listed certificate ends, in Unix seconds, or one of the constants below.
type end uint32

const (
	unknownEnd end = iota
	noEnd          // the inventory does not have the certificate
	askedEnd       // the inventory is being read
	firstEnd       // the smallest time
)

// endOf is noEnd for a time that does not fit, after the year 2105: so its certificate stays on the CRL.
func endOf(t time.Time) end {
	if t.Unix() > math.MaxUint32 {
		return noEnd
	}
	return end(max(t.Unix(), int64(firstEnd))) // #nosec G115 -- it fits
}

// before reports whether the certificate is known to have ended before t.
func (e end) before(t time.Time) bool { return e >= firstEnd && int64(e) < t.Unix() }

// listing has the serials in the CA's own CRL, and when their certificates end.
// Only the holder of crlKeeper.revoking may change it.
type listing struct {
	mu     sync.RWMutex
	serial pemfile.SerialSet
	ends   []end             // in the order of serial
	recent map[serialKey]end // what is not yet in serial
}

// start sets what is listed at the start.
func (l *listing) start(listed pemfile.SerialSet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serial, l.ends, l.recent = listed, make([]end, listed.Len()), make(map[serialKey]end)
}

func (l *listing) has(key serialKey) bool {
	_, ok := l.lookUp(key)
	return ok
}

func (l *listing) end(key serialKey) end {
	e, _ := l.lookUp(key)
	return e
}

func (l *listing) lookUp(key serialKey) (end, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if i, ok := l.serial.Index(key); ok {
		return l.ends[i], true
	}
	e, ok := l.recent[key]
	return e, ok
}

// recentOf: recent may have one in so many of the serials. A serial costs much more memory there, but is cheap to add.
const recentOf = 64

// change applies the difference between a new CRL and the last.
func (l *listing) change(d delta) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range d.added {
		if _, ok := l.serial.Index(key); ok {
			continue
		}
		if _, ok := l.recent[key]; !ok {
			l.recent[key] = unknownEnd
		}
	}
	if len(d.removed) > 0 || len(l.recent) > 1024+l.serial.Len()/recentOf {
		l.merge(d.removed)
	}
}

// merge makes one set of all, without those. The lock is held.
func (l *listing) merge(removed []serialKey) {
	gone := make(map[serialKey]bool, len(removed))
	for _, key := range removed {
		gone[key] = true
	}
	var serial pemfile.SerialSet
	ends := make([]end, 0, len(l.ends)+len(l.recent))
	add := func(key serialKey, e end) {
		if !gone[key] {
			serial.Append(key)
			ends = append(ends, e)
		}
	}
	news := slices.SortedFunc(maps.Keys(l.recent), serialKey.Compare)
	for i, e := range l.ends {
		key := l.serial.At(i)
		for len(news) > 0 && news[0].Compare(key) < 0 {
			add(news[0], l.recent[news[0]])
			news = news[1:]
		}
		add(key, e)
	}
	for _, key := range news {
		add(key, l.recent[key])
	}
	l.serial, l.ends, l.recent = serial, ends, make(map[serialKey]end)
}

// update sets an end to what change makes of it. The lock is held.
func (l *listing) update(key serialKey, change func(end) end) {
	if i, ok := l.serial.Index(key); ok {
		l.ends[i] = change(l.ends[i])
	} else if e, ok := l.recent[key]; ok {
		l.recent[key] = change(e)
	}
}

// setEnd stores when a listed certificate ends.
func (l *listing) setEnd(key serialKey, e end) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.update(key, func(end) end { return e })
}

// each changes all ends. The lock is held.
func (l *listing) each(change func(end) end) {
	for i, e := range l.ends {
		l.ends[i] = change(e)
	}
	for key, e := range l.recent {
		l.recent[key] = change(e)
	}
}

// ask marks the serials of which it isn't known when they end, and says whether there are any. answer is then
// called with what the inventory has, and asked at its end.
func (l *listing) ask() (any bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.each(func(e end) end {
		if e == unknownEnd {
			any, e = true, askedEnd
		}
		return e
	})
	return any
}

// answer notes an end, the later one should a serial stand in the inventory twice.
func (l *listing) answer(key serialKey, e end) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.update(key, func(known end) end {
		if known == askedEnd || known >= firstEnd && e > known {
			return e
		}
		return known
	})
}

// asked ends what ask began. Where the inventory was not read to its end, what is not known is asked for again.
func (l *listing) asked(whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.each(func(e end) end {
		if e != askedEnd {
			return e
		}
		if whole {
			return noEnd
		}
		return unknownEnd
	})
}

// endedBefore returns the serials of the certificates that ended before t.
func (l *listing) endedBefore(t time.Time) []serialKey {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var keys []serialKey
	for i, e := range l.ends {
		if e.before(t) {
			keys = append(keys, l.serial.At(i))
		}
	}
	for key, e := range l.recent {
		if e.before(t) {
			keys = append(keys, key)
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

// Published is ca_crl.pem and its copies as espm wrote them last.
type Published struct {
	Issuer     *x509.Certificate
	Number     string
	NextUpdate time.Time
	Lists      func(serial *big.Int) bool // by the CRL, or by a later one
	PEM, Rest  []byte                     // the content of the file, and the part of it that is of other CAs
}

// Published returns what Trust returns as CRLs, with what is known of the CA's own.
func (a *crlKeeper) Published() *Published {
	c := a.crl.Load()
	return &Published{
		Issuer: a.issuer, Number: c.number.String(), NextUpdate: c.nextUpdate, PEM: c.pem, Rest: c.rest(),
		Lists: func(serial *big.Int) bool {
			key, ok := pemfile.KeyOf(serial)
			return ok && a.listed.has(key)
		},
	}
}
