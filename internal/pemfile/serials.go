package pemfile

import (
	"bytes"
	"encoding/binary"
	"math/big"
	"slices"
)

// SerialKey is a serial number of at most 20 octets (the limit of RFC 5280), big-endian, padded with zeros
// on the left. SerialKey has no pointers, so the garbage collector does not scan a large set of keys.
type SerialKey [20]byte

// KeyOf returns the key of a serial. KeyOf returns false for a negative serial, or one of more than 20
// octets.
func KeyOf(n *big.Int) (SerialKey, bool) {
	var key SerialKey
	if n.Sign() < 0 || n.BitLen() > 8*len(key) {
		return key, false
	}
	n.FillBytes(key[:])
	return key, true
}

// Key returns the key of the entry's serial, like KeyOf.
func (e Entry) Key() (SerialKey, bool) {
	var key SerialKey
	b, ok := e.Bytes()
	if !ok || len(b) > len(key) {
		return key, false
	}
	copy(key[len(key)-len(b):], b)
	return key, true
}

// Bytes returns the serial of an entry in the form of big.Int.Bytes, of any length. Bytes returns false
// for a negative serial.
func (e Entry) Bytes() ([]byte, bool) {
	return bytes.TrimLeft(e.Serial, "\x00"), e.Serial[0]&0x80 == 0
}

// Compare orders keys as numbers.
func (k SerialKey) Compare(other SerialKey) int { return bytes.Compare(k[:], other[:]) }

// SerialSet is a sorted set of serials. A serial of at most 8 octets costs 8 bytes, a longer one 20.
type SerialSet struct {
	short []uint64
	long  []SerialKey
}

// Serials returns the set of the entries' serials, without those for which Key returns false. repeated
// reports whether a serial occurs more than once.
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

// Append adds a serial. The serial must be greater than all serials in the set, or the caller must sort
// the set.
func (s *SerialSet) Append(key SerialKey) {
	if key.isShort() {
		s.short = append(s.short, key.low())
	} else {
		s.long = append(s.long, key)
	}
}

// Len returns the number of serials.
func (s SerialSet) Len() int { return len(s.short) + len(s.long) }

// Index returns the position of a serial in the sorted set, and false if the serial is not in the set.
func (s SerialSet) Index(key SerialKey) (int, bool) {
	if key.isShort() {
		return slices.BinarySearch(s.short, key.low())
	}
	i, found := slices.BinarySearchFunc(s.long, key, SerialKey.Compare)
	return len(s.short) + i, found
}

// At returns the serial at a position of the sorted set.
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
