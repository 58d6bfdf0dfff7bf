package directory

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"

	"github.com/espm-project/espm/internal/node"
)

// seed is of subjectHash, whose values differ in each process.
var seed = maphash.MakeSeed()

// manySubjects is the value of a serial that the file has under several subjects.
const manySubjects = 0

// subjectHash returns a short value for a subject, so that the index stays small.
func subjectHash(subject []byte) uint64 {
	return max(maphash.Bytes(seed, bytes.TrimRight(subject, "\r\n")), manySubjects+1)
}

// has reports whether a serial was ever issued for a name. The first call reads the whole
// file into an index. Find calls it after a crash, perhaps for many names. forget frees the memory.
func (v *inventory) has(serial node.Serial, name node.Certname) (bool, error) {
	key, ok := keyOfSerial(serial)
	if !ok {
		return false, nil
	}
	v.indexing.Lock()
	defer v.indexing.Unlock()
	if v.index == nil {
		index := make(map[serialKey]uint64)
		err := v.scan(func(key serialKey, rest []byte) error {
			note(index, key, subjectHash(subjectOf(rest)))
			return nil
		})
		if err != nil {
			return false, err
		}
		v.index = index
	}
	subject, ok := v.index[key]
	return ok && (subject == manySubjects || subject == subjectHash([]byte("/CN="+name))), nil
}

func note(index map[serialKey]uint64, key serialKey, subject uint64) {
	if other, twice := index[key]; twice && other != subject {
		subject = manySubjects
	}
	index[key] = subject
}

// indexed adds appended lines to the index. After an error, it drops the index: the file must be read again.
func (v *inventory) indexed(issued map[serialKey]uint64, err error) {
	v.indexing.Lock()
	defer v.indexing.Unlock()
	if err != nil {
		v.index = nil
	}
	if v.index == nil {
		return
	}
	for key, subject := range issued {
		note(v.index, key, subject)
	}
}

// forget frees the memory of has and severalOf.
func (v *inventory) forget() {
	v.indexing.Lock()
	defer v.indexing.Unlock()
	v.index, v.several = nil, nil
}

// ends calls found with each wanted serial in the file and when its certificate ends.
func (v *inventory) ends(ctx context.Context, wanted func(serialKey) bool, found func(serialKey, end)) error {
	lines := 0
	return v.scan(func(key serialKey, rest []byte) error {
		if lines++; lines%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if !wanted(key) {
			return nil
		}
		_, rest, _ = bytes.Cut(rest, []byte(" "))
		notAfter, _, _ := bytes.Cut(rest, []byte(" "))
		if t, ok := parseInventoryTime(string(notAfter)); ok {
			found(key, endOf(t))
		}
		return nil
	})
}

// scan calls do with each line's serial and the rest of the line, until an error.
func (v *inventory) scan(do func(key serialKey, rest []byte) error) (err error) {
	f, err := os.Open(v.path)
	if err != nil {
		return fmt.Errorf("read inventory: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lines := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := lines.ReadSlice('\n')
		if field, rest, ok := bytes.Cut(line, []byte(" ")); ok {
			if key, ok := parseSerialKey(field); ok {
				if err := do(key, rest); err != nil {
					return fmt.Errorf("read inventory: %w", err)
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("read inventory: %w", err)
		}
	}
}

// parseSerialKey is a parseSerial that does not allocate: the file may have a million lines.
func parseSerialKey(field []byte) (serialKey, bool) {
	var key serialKey
	digits, ok := bytes.CutPrefix(field, []byte("0x"))
	if !ok || len(digits) == 0 || len(digits) > 2*len(key) {
		return key, false
	}
	for i := range len(digits) {
		c := digits[len(digits)-1-i]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return key, false
		}
		key[len(key)-1-i/2] |= c << (4 * (i % 2))
	}
	return key, true
}
