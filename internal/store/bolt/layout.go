package bolt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/store"
)

// format is the version of the layout that this package writes.
const format = 1

var (
	bucketKV      = []byte("kv")
	bucketHistory = []byte("history")
	bucketMeta    = []byte("meta")
	keyFormat     = []byte("format")
	keyRevision   = []byte("revision")
)

func initLayout(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketKV, bucketHistory, bucketMeta} {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	if err := tx.Bucket(bucketMeta).Put(keyFormat, strconv.AppendInt(nil, format, 10)); err != nil {
		return err
	}
	return writeRevision(tx, 0)
}

func readRevision(tx *bbolt.Tx) (int64, error) {
	text := string(tx.Bucket(bucketMeta).Get(keyRevision))
	revision, err := strconv.ParseInt(text, 10, 64)
	if err != nil || revision < 0 {
		return 0, fmt.Errorf("store is damaged: its revision is %q", text)
	}
	return revision, nil
}

func writeRevision(tx *bbolt.Tx, revision int64) error {
	return tx.Bucket(bucketMeta).Put(keyRevision, strconv.AppendInt(nil, revision, 10))
}

// maxPrefix is the maximum length of a revision and the space after it.
const maxPrefix = len("9223372036854775807 ")

// roomyValue copies a value and reserves space for its prefix. So the value is copied only once, although
// its revision is not yet known.
func roomyValue(value []byte) []byte {
	return append(make([]byte, maxPrefix, maxPrefix+len(value)), value...)
}

// prefixed puts the revision before the value of a roomyValue.
func prefixed(roomy []byte, revision int64) []byte {
	prefix := append(strconv.AppendInt(make([]byte, 0, maxPrefix), revision, 10), ' ')
	record := roomy[maxPrefix-len(prefix):]
	copy(record, prefix)
	return record
}

// splitRecord splits a record into revision and value. The value is memory of bbolt, valid only during the
// transaction.
func splitRecord(key string, record []byte) (revision int64, value []byte, err error) {
	prefix, value, ok := bytes.Cut(record, []byte(" "))
	if ok {
		revision, err = strconv.ParseInt(string(prefix), 10, 64)
	}
	if !ok || err != nil {
		return 0, nil, fmt.Errorf("record of key %q is damaged: it begins with no revision", key)
	}
	return revision, value, nil
}

// parseRecord returns a record with a copy of the value.
func parseRecord(key string, record []byte) (store.Record, error) {
	revision, value, err := splitRecord(key, record)
	if err != nil {
		return store.Record{}, err
	}
	return store.Record{Key: key, Value: bytes.Clone(value), Revision: revision}, nil
}

func historyKey(revision int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(revision)) // #nosec G115 -- a revision is never negative
}

func historyRevision(key []byte) (int64, error) {
	if len(key) != 8 {
		return 0, fmt.Errorf("history is damaged: it has a key of %d bytes", len(key))
	}
	return int64(binary.BigEndian.Uint64(key)), nil // #nosec G115 -- what historyKey wrote
}

// change is one changed key in an entry of the history.
type change struct {
	key     string
	deleted bool
}

// appendChange appends a line to an entry. Keys are quoted as in Go, as JSON can't express a key that is
// not UTF-8.
func appendChange(entry []byte, c change) []byte {
	sign := byte('+')
	if c.deleted {
		sign = '-'
	}
	return append(strconv.AppendQuote(append(entry, sign), c.key), '\n')
}

func parseChanges(revision int64, entry []byte) ([]change, error) {
	var changes []change
	for line := range strings.Lines(string(entry)) {
		key, err := strconv.Unquote(strings.TrimSuffix(line[1:], "\n"))
		if err != nil || (line[0] != '+' && line[0] != '-') {
			return nil, fmt.Errorf("history of revision %d is damaged: %q", revision, line)
		}
		changes = append(changes, change{key: key, deleted: line[0] == '-'})
	}
	return changes, nil
}
