package pemfile

import (
	"bytes"
	"encoding/binary"
	"math/big"
	"slices"
)

// SerialKey is a serial number of at most 20 octets, which is RFC 5280's
// limit, to the right. It has no pointers, so many of them are small, and nothing to the garbage collector.
type SerialKey [20]byte

// KeyOf returns the key of a serial; false for one that no certificate may have.
func KeyOf(n *big.Int) (SerialKey, bool) {
	var key SerialKey
	if n.Sign() < 0 || n.BitLen() > 8*len(key) {
		return key, false
	}
	n.FillBytes(key[:])
	return key, true
}

// Key does the same for an entry's.
func (e Entry) Key() (SerialKey, bool) {
	var key SerialKey
	b, ok := e.Bytes()
	if !ok || len(b) > len(key) {
		return key, false
	}
	copy(key[len(key)-len(b):], b)
	return key, true
}

// Bytes returns the serial of an entry as big.Int.Bytes does, however long; false if it is negative.
func (e Entry) Bytes() ([]byte, bool) {
	return bytes.TrimLeft(e.Serial, "\x00"), e.Serial[0]&0x80 == 0
}

// Compare orders keys as numbers.
func (k SerialKey) Compare(other SerialKey) int { return bytes.Compare(k[:], other[:]) }

// SerialSet is a set of serials in order. A serial of at most 8 octets costs 8 bytes, a longer one 20.
type SerialSet struct {
	short []uint64
	long  []SerialKey
}

// Serials returns the set of the entries' serials. One that no certificate may have is left out.
// repeated: a serial stands there more than once.
func (e Entries) Serials() (set SerialSet, repeated bool) {
	short := 0
	for entry := range e.All() {
		if key, ok := entry.Key(); ok && key.isShort() {
			short++
		}
	}
	set.short = make([]uint64, 0, short)
	for entry := range e.All() {
		if key, ok := entry.Key(); ok {
			set.Append(key)
		}
	}
	slices.Sort(set.short)
	slices.SortFunc(set.long, SerialKey.Compare)
	n := set.Len()
	set.short, set.long = slices.Compact(set.short), slices.Compact(set.long)
	return set, set.Len() < n
}

func (k SerialKey) isShort() bool { return [len(k) - 8]byte(k[:]) == [len(k) - 8]byte{} }

func (k SerialKey) low() uint64 { return binary.BigEndian.Uint64(k[len(k)-8:]) }

// Append adds a serial that is above all in the set.
func (s *SerialSet) Append(key SerialKey) {
	if key.isShort() {
		s.short = append(s.short, key.low())
	} else {
		s.long = append(s.long, key)
	}
}

// Len returns how many serials there are.
func (s SerialSet) Len() int { return len(s.short) + len(s.long) }

// Index returns the place of a serial in the order, false where it is not in the set.
func (s SerialSet) Index(key SerialKey) (int, bool) {
	if key.isShort() {
		return slices.BinarySearch(s.short, key.low())
	}
	i, found := slices.BinarySearchFunc(s.long, key, SerialKey.Compare)
	return len(s.short) + i, found
}

// At returns the serial at a place in the order.
func (s SerialSet) At(i int) SerialKey {
	if i >= len(s.short) {
		return s.long[i-len(s.short)]
	}
	var key SerialKey
	binary.BigEndian.PutUint64(key[len(key)-8:], s.short[i])
	return key
}

// Has reports whether a serial is in the set.
func (s SerialSet) Has(serial *big.Int) bool {
	key, ok := KeyOf(serial)
	if !ok {
		return false
	}
	_, found := s.Index(key)
	return found
}
