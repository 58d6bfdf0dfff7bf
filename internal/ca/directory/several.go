package directory

import (
	"bytes"
	"fmt"
	"math/big"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// A name may have several certificates in force. Puppet has one file for each name. If a certificate was
// issued again without a revocation, only the inventory has the first one's serial.

// others returns the certificates of a name that are in force, without the serial but: newest first.
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

// severalOf returns the unexpired lines of a name if it has more than one. The first call reads the
// whole file, as an import asks for many names. forget frees the memory.
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

// readSeveral returns the unexpired lines of names that have several. It ignores a serial that the file has
// under two names, as its revocation would revoke both.
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
		if _, twice := subjects[key]; !twice { // each serial once
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
			_, _, subject := splitLine(rest)
			note(subjects, key, subjectHash(subject))
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

// cutLine returns the times and the subject of a line without its serial, or false if a time can't be read.
func cutLine(rest []byte) (notBefore, notAfter time.Time, subject []byte, ok bool) {
	begin, end, subject := splitLine(rest)
	notBefore, beginOK := parseInventoryTime(string(begin))
	notAfter, endOK := parseInventoryTime(string(end))
	return notBefore, notAfter, subject, beginOK && endOK
}
