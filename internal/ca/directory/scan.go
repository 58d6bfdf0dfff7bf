package directory

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/espm-project/espm/internal/node"
)

// seed is of subjectHash, whose values differ in each process.
var seed = maphash.MakeSeed()

// manySubjects is the value of a serial that the file has under several subjects.
const manySubjects = 0

// subjectHash returns a short value for a subject, so that the index stays small.
func subjectHash(subject []byte) uint64 {
	return max(maphash.Bytes(seed, subject), manySubjects+1)
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
			_, _, subject := splitLine(rest)
			note(index, key, subjectHash(subject))
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
		_, notAfter, _ := splitLine(rest)
		if t, ok := parseInventoryTime(string(notAfter)); ok {
			found(key, endOf(t))
		}
		return nil
	})
}

// scan calls do with each line's serial and the rest of the line, until an error.
func (v *inventory) scan(do func(key serialKey, rest []byte) error) (err error) {
	f, err := v.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lines := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := lines.ReadSlice('\n')
		serial, rest := nextField(line)
		if key, ok := parseSerialKey(serial); ok {
			if err := do(key, rest); err != nil {
				return fmt.Errorf("read inventory: %w", err)
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

// splitLine returns the two times and the subject of a line without its serial.
func splitLine(rest []byte) (notBefore, notAfter, subject []byte) {
	notBefore, rest = nextField(rest)
	notAfter, rest = nextField(rest)
	return notBefore, notAfter, bytes.Trim(rest, blanks)
}

const blanks = " \t\r\n"

// nextField cuts the first word off a line.
func nextField(line []byte) (field, rest []byte) {
	line = bytes.TrimLeft(line, blanks)
	if i := bytes.IndexAny(line, blanks); i >= 0 {
		return line[:i], line[i:]
	}
	return line, nil
}

// anyZone is how much later than in UTC a time may be whose zone is only a name.
const anyZone = 12 * time.Hour

// parseInventoryTime reads the formats of all versions of Puppet: UTC, GMT, or an offset. A time with another zone is
// read as the latest that it may be.
func parseInventoryTime(text string) (time.Time, bool) {
	for _, layout := range []string{inventoryTime, "2006-01-02T15:04:05GMT", "2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05-0700"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), true
		}
	}
	t, err := time.Parse("2006-01-02T15:04:05", strings.TrimRightFunc(text, unicode.IsLetter))
	return t.Add(anyZone), err == nil
}

// parseSerialKey reads a serial, in upper or lower case. It does not allocate: the file may have a million lines.
func parseSerialKey(field []byte) (serialKey, bool) {
	var key serialKey
	digits, ok := bytes.CutPrefix(field, []byte("0x"))
	// RFC 5280 section 4.1.2.2: at most 20 octets.
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
