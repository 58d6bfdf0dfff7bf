package directory

import (
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/pemfile"
)

// entryList is the entries of the CA's own CRL. It does not change once it is made.
type entryList struct {
	entries  pemfile.Entries // what lies beyond belongs to whoever revokes
	count    int             // of entries
	newest   time.Time       // the latest date of an entry
	repeated bool            // a serial stands there more than once
}

// newEntryList takes the entries of a CRL as they are.
func newEntryList(entries pemfile.Entries) (entryList, pemfile.SerialSet) {
	l := entryList{entries: slices.Clip(entries)}
	for e := range entries.All() {
		l.count++
		l.date(e)
	}
	var listed pemfile.SerialSet
	listed, l.repeated = entries.Serials()
	return l, listed
}

func (l *entryList) date(e pemfile.Entry) {
	if when, ok := e.Time(); ok && when.After(l.newest) {
		l.newest = when
	}
}

// roomOf is the part of a list by which it grows, so that most revocations need no new copy.
const roomOf = 32

// add appends an entry.
func (l *entryList) add(der []byte, when time.Time) {
	if len(l.entries)+len(der) > cap(l.entries) {
		grown := make(pemfile.Entries, len(l.entries), len(l.entries)+len(l.entries)/roomOf+4096+len(der))
		copy(grown, l.entries)
		l.entries = grown
	}
	l.entries = append(l.entries, der...)
	l.count++
	if when.After(l.newest) {
		l.newest = when
	}
}

// revoke appends the entry of a revocation.
func (l *entryList) revoke(t ca.Target, when time.Time) error {
	der, err := newEntry(t, when)
	if err == nil {
		l.add(der, when)
	}
	return err
}

// take appends an entry that somebody else made.
func (l *entryList) take(e pemfile.Entry) {
	when, _ := e.Time()
	l.add(e.Raw, when)
}

// without returns the list but for those.
func (l entryList) without(gone []serialKey) entryList {
	if len(gone) == 0 {
		return l
	}
	drop := make(map[serialKey]bool, len(gone))
	for _, key := range gone {
		drop[key] = true
	}
	kept := entryList{entries: make(pemfile.Entries, 0, len(l.entries)), newest: l.newest, repeated: l.repeated}
	for e := range l.entries.All() {
		if key, ok := e.Key(); !ok || !drop[key] {
			kept.entries = append(kept.entries, e.Raw...)
			kept.count++
		}
	}
	return kept
}

// mended returns the list as it may stand on a CRL of that time: each serial once, and no entry dated later.
func (l entryList) mended(thisUpdate time.Time) (entryList, error) {
	if !l.repeated && !l.newest.After(thisUpdate) {
		return l, nil
	}
	mended := entryList{entries: make(pemfile.Entries, 0, len(l.entries))}
	seen := make(map[serialKey]bool)
	for e := range l.entries.All() {
		if key, ok := e.Key(); ok && l.repeated {
			if seen[key] {
				continue
			}
			seen[key] = true
		}
		der := e.Raw
		when, _ := e.Time()
		if when.After(thisUpdate) {
			var err error
			if der, err = redated(der, thisUpdate); err != nil {
				return l, err
			}
			when = thisUpdate
		}
		mended.add(der, when)
	}
	return mended, nil
}

// redated returns an entry with another date.
func redated(der []byte, when time.Time) ([]byte, error) {
	var entry struct {
		Serial, Date asn1.RawValue
		Extensions   asn1.RawValue `asn1:"optional"`
	}
	_, err := asn1.Unmarshal(der, &entry)
	if err == nil {
		entry.Date.FullBytes, err = asn1.Marshal(when.UTC())
	}
	if err == nil {
		der, err = asn1.Marshal(entry)
	}
	if err != nil {
		return nil, fmt.Errorf("date a CRL entry anew: %w", err)
	}
	return der, nil
}
