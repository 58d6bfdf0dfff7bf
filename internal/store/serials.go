package store

import (
	"context"
	"fmt"

	"github.com/espm-project/espm/internal/node"
)

// oneSerial is a node as schema version 1 has it: of one live certificate.
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

// listSerials rewrites nodes and tombstones of schema version 1. It is safe to run again: what
// is rewritten has no "serial" any more. A commit has as many records as the engine's bounds allow.
func listSerials(ctx context.Context, e Engine) error {
	for _, prefix := range []string{nodePrefix, tombstonesPrefix} {
		batch, size := Batch{Unwatched: true}, 0
		flush := func() error {
			if len(batch.Puts) == 0 {
				return nil
			}
			_, err := storeOf(e).commit(ctx, batch)
			batch, size = Batch{Unwatched: true}, 0
			return err
		}
		for rec, err := range (records{e}).scan(ctx, prefix, "") {
			if err != nil {
				return err
			}
			put, old, err := listedSerial(rec)
			if err != nil {
				return err
			}
			if !old {
				continue
			}
			if bounds, more := e.Bounds(), 2*len(put.Key)+len(put.Value); len(batch.Puts) == bounds.Operations || size+more > bounds.Bytes {
				if err := flush(); err != nil {
					return fmt.Errorf("rewriting nodes before %q: %w", rec.Key, err)
				}
			}
			batch.Guards = append(batch.Guards, Guard{rec.Key, rec.Revision})
			batch.Puts = append(batch.Puts, put)
			size += 2*len(put.Key) + len(put.Value)
		}
		if err := flush(); err != nil {
			return fmt.Errorf("rewriting the last nodes of %q: %w", prefix, err)
		}
	}
	return nil
}

// listedSerial returns the record as it is written now, false where it needs no rewriting.
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
