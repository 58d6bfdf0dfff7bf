package directory

import (
	"bytes"
	"fmt"
	"math/big"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Several certificates of one name. Puppet keeps one file a name, so of a certificate that was
// issued anew without a revocation the inventory's line is all that is left. It is in force nevertheless.

// others returns what the inventory has of a name besides one serial, that is in force: newest first.
func (a *Authority) others(name node.Certname, but node.Serial) ([]ca.Issued, error) {
	now := a.opts.Now()
	lines, err := a.inventory.severalOf(name, now)
	if err != nil {
		return nil, fmt.Errorf("certificates of %s in the inventory: %w", name, err)
	}
	var out []ca.Issued
	for i := len(lines) - 1; i >= 0; i-- { // the file has the oldest first
		if l := lines[i]; l.Serial != but && !now.After(l.NotAfter) && !a.revoked(l.Serial) {
			out = append(out, ca.Issued{Serial: l.Serial, NotBefore: l.NotBefore, NotAfter: l.NotAfter})
		}
	}
	return out, nil
}

// severalOf returns the lines of a name that has more than one which has not expired. The first call reads the
// whole file: it is for an import, which asks for many names. forget gives the memory back.
func (v *inventory) severalOf(name node.Certname, now time.Time) ([]entry, error) {
	v.indexing.Lock()
	defer v.indexing.Unlock()
	if v.several == nil {
		several, err := v.readSeveral(now)
		if err != nil {
			return nil, err
		}
		v.several = several
	}
	return v.several[name], nil
}

// readSeveral finds the names with several lines that have not expired. A serial that the file has under two names says
// nothing on either: its revocation would reach the other one.
func (v *inventory) readSeveral(now time.Time) (map[node.Certname][]entry, error) {
	counts := map[uint64]uint8{}
	err := v.scan(func(_ serialKey, rest []byte) error {
		if _, notAfter, subject, ok := cutLine(rest); ok && !now.After(notAfter) {
			key := subjectHash(subject)
			counts[key] = min(counts[key]+1, 2)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	several := map[node.Certname][]entry{}
	subjects := map[serialKey]uint64{}
	err = v.scan(func(key serialKey, rest []byte) error {
		notBefore, notAfter, subject, ok := cutLine(rest)
		if !ok || now.After(notAfter) || counts[subjectHash(subject)] < 2 {
			return nil
		}
		if _, twice := subjects[key]; !twice { // one line is enough of a serial
			name := node.Certname(bytes.TrimPrefix(subject, []byte("/CN=")))
			several[name] = append(several[name], entry{Serial: node.SerialOf(new(big.Int).SetBytes(key[:])), NotBefore: notBefore, NotAfter: notAfter, Subject: string(subject)})
		}
		note(subjects, key, subjectHash(subject))
		return nil
	})
	if err != nil || len(several) == 0 {
		return several, err
	}
	err = v.scan(func(key serialKey, rest []byte) error {
		if _, wanted := subjects[key]; wanted {
			note(subjects, key, subjectHash(subjectOf(rest)))
		}
		return nil
	})
	for name, lines := range several {
		var own []entry
		for _, l := range lines {
			if key, _ := keyOfSerial(l.Serial); subjects[key] != manySubjects {
				own = append(own, l)
			}
		}
		several[name] = own
	}
	return several, err
}

// cutLine returns the times and the subject of what follows a line's serial, false where a time can't be read.
func cutLine(rest []byte) (notBefore, notAfter time.Time, subject []byte, ok bool) {
	first, after, _ := bytes.Cut(rest, []byte(" "))
	second, _, _ := bytes.Cut(after, []byte(" "))
	notBefore, beginOK := parseInventoryTime(string(first))
	notAfter, endOK := parseInventoryTime(string(second))
	return notBefore, notAfter, bytes.TrimRight(subjectOf(rest), "\r\n"), beginOK && endOK
}

// subjectOf returns what follows the two times.
func subjectOf(rest []byte) []byte {
	for range 2 {
		_, rest, _ = bytes.Cut(rest, []byte(" "))
	}
	return rest
}

// parseInventoryTime reads the spellings of all Puppets: UTC, GMT, or an offset.
func parseInventoryTime(text string) (time.Time, bool) {
	for _, layout := range []string{inventoryTime, "2006-01-02T15:04:05GMT", "2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05-0700"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}
