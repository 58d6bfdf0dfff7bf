package pemfile

import (
	"bytes"
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
	b := e.Serial
	if b[0]&0x80 != 0 {
		return key, false
	}
	b = bytes.TrimLeft(b, "\x00")
	if len(b) > len(key) {
		return key, false
	}
	copy(key[len(key)-len(b):], b)
	return key, true
}

// Compare orders keys as numbers.
func (k SerialKey) Compare(other SerialKey) int { return bytes.Compare(k[:], other[:]) }

// SerialSet is the serials of a CRL. A serial costs 20 bytes. It does not change once it is made.
type SerialSet []SerialKey

// Serials returns the set of the entries' serials. One that no certificate may have is left out.
func (e Entries) Serials() SerialSet {
	set := make(SerialSet, 0, e.Count())
	for entry := range e.All() {
		if key, ok := entry.Key(); ok {
			set = append(set, key)
		}
	}
	slices.SortFunc(set, SerialKey.Compare)
	return set
}

// Has reports whether a serial is in the set.
func (s SerialSet) Has(serial *big.Int) bool {
	key, ok := KeyOf(serial)
	if !ok {
		return false
	}
	_, found := slices.BinarySearchFunc(s, key, SerialKey.Compare)
	return found
}
