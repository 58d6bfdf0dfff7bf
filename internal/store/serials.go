package store

import (
	"context"

	"github.com/espm-project/espm/internal/node"
)

// oneSerial is a node in the form of schema version 1, with at most one live certificate.
type oneSerial struct {
	*node.Node
	Serial node.Serial `json:"serial"`
}

// listSerial makes the one serial the first of the list.
func (o oneSerial) listSerial() {
	if o.Serial != "" && len(o.Serials) == 0 {
		o.Serials = []node.Serial{o.Serial}
	}
}

const (
	listedAtOnce = 500      // records of a batch
	listedMargin = 64 << 10 // bytes of a batch that are left for the schema record
)

// listSerials is the step that rewrites registrations of schema version 1 below a prefix. Readers take both
// forms. It is safe to run again: a rewritten record has no "serial".
func listSerials(prefix string) step {
	return step{"serials of " + prefix, func(ctx context.Context, s *Store, after string) (b Batch, last string, err error) {
		records, _, err := s.engine.List(ctx, prefix, after, s.Fit(listedAtOnce, 1))
		if err != nil {
			return b, "", err
		}
		size := 0
		for _, rec := range records {
			put, old, err := listedSerial(rec)
			if err != nil {
				return b, "", err
			}
			if old {
				more := 2*len(put.Key) + len(put.Value)
				if size > 0 && size+more > s.engine.Bounds().Bytes-listedMargin {
					break // the next batch has it
				}
				size += more
				b.Guards = append(b.Guards, Guard{rec.Key, rec.Revision})
				b.Puts = append(b.Puts, put)
			}
			last = rec.Key
		}
		return b, last, nil
	}}
}

// listedSerial returns the record in the current form. It returns false if the record has that form already.
func listedSerial(rec Record) (Put, bool, error) {
	var n node.Node
	o := oneSerial{Node: &n}
	if err := unmarshal(rec, &o); err != nil {
		return Put{}, false, err
	}
	if o.Serial == "" {
		return Put{}, false, nil
	}
	o.listSerial()
	return Put{rec.Key, encode(n)}, true, nil
}
