package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/espm-project/espm/internal/node"
)

// Audit lines are written twice. A change's own commit puts them under audit/new/. Then the sealer, the only writer
// of the chain, moves them to their place in the chain. If changes wrote to the chain themselves, each commit would
// wait for the one before.

// errUnaudited is a programming error: each change needs a line, or a call of Unaudited.
var errUnaudited = errors.New("store: the change has no audit line")

// Audit adds a line about the change, in the change's own commit.
func (c *Change) Audit(l node.AuditLine) { c.lines = append(c.lines, l.Bounded()) }

// Unaudited allows the commit of a change without a line.
func (c *Change) Unaudited() { c.unaudited = true }

// putLines adds the lines to the records of the change.
func (c *Change) putLines() error {
	if len(c.lines) == 0 {
		if !c.unaudited && len(c.puts)+len(c.deletes)+len(c.index) > 0 {
			return errUnaudited
		}
		return nil
	}
	for _, l := range c.lines {
		if l.ID == "" || l.Time.IsZero() || l.Principal == "" || l.Action == "" || l.Outcome == "" {
			return fmt.Errorf("store: audit line %+v has no id, time, principal, action or outcome", l)
		}
	}
	c.put(auditNewPrefix+c.lines[0].ID, encode(c.lines))
	return nil
}

// NewLines are the lines of one change that are not in the chain yet.
type NewLines struct {
	Lines    []node.AuditLine
	Revision int64 // that the change made
	key      string
}

// Operations returns how many operations a commit needs to seal the lines.
func (n NewLines) Operations() int { return len(n.Lines) + 1 }

// NewLines returns lines that are not in the chain yet, roughly in the order of the changes, and whether more
// follow. Sealing them needs at most the given number of operations, unless they are of one change.
func (v auditView) NewLines(ctx context.Context, operations int) (out []NewLines, more bool, err error) {
	for rec, err := range v.scan(ctx, auditNewPrefix, "") {
		if err != nil {
			return nil, false, err
		}
		var lines []node.AuditLine
		if err := json.Unmarshal(rec.Value, &lines); err != nil {
			return nil, false, fmt.Errorf("record %q is damaged: %w", rec.Key, err)
		}
		n := NewLines{lines, rec.Revision, rec.Key}
		if operations -= n.Operations(); operations < 0 && len(out) > 0 {
			return out, true, nil
		}
		out = append(out, n)
	}
	return out, false, nil
}

// AuditHead returns the head of the chain; the zero value if there is none yet.
func (v auditView) AuditHead(ctx context.Context) (node.AuditHead, error) {
	h, _, err := optional[node.AuditHead](ctx, v.records, auditHeadKey)
	return h, err
}

// AuditRecord is a line of the chain as it is stored; Err says why it can't be read.
type AuditRecord struct {
	node.SealedLine
	Size int64 // in bytes, as AuditHead counts them
	Err  error
}

// AuditLines returns up to limit lines of the chain after a sequence number, in order. A line with a damaged place
// or record is returned with its error.
func (v auditView) AuditLines(ctx context.Context, after int64, limit int) ([]AuditRecord, error) {
	from := ""
	if after > 0 {
		from = auditLineKey(after)
	}
	recs, _, err := v.reader.List(ctx, auditLinePrefix, from, limit)
	if err != nil {
		return nil, err
	}
	out := make([]AuditRecord, len(recs))
	for i, rec := range recs {
		out[i].Size = int64(len(rec.Value))
		if err := json.Unmarshal(rec.Value, &out[i].SealedLine); err != nil {
			out[i].Err = fmt.Errorf("record %q is damaged: %w", rec.Key, err)
		} else if rec.Key != auditLineKey(out[i].Seq) {
			out[i].Err = fmt.Errorf("record %q says that it is line %d", rec.Key, out[i].Seq)
		}
	}
	return out, nil
}

// ChainStep is one step of the chain: lines that join it, and lines at its base that leave.
type ChainStep struct {
	Old, New node.AuditHead
	Join     []node.SealedLine
	Sealed   []NewLines // the records that the lines come from; the step removes them
	Leave    int        // how many, from Old.Base+1 on
}

// Seal commits a step. No watch gets an event of it. Seal adds the new lines to New.Bytes; the caller subtracts those
// that leave. The error wraps node.ErrStale if the chain does not end at Old, or has lines after it.
func (s *Store) Seal(ctx context.Context, step ChainStep) (node.AuditHead, error) {
	b := Batch{Unwatched: true, Guards: []Guard{{auditHeadKey, step.Old.Revision}}}
	for _, l := range step.Join {
		put := Put{auditLineKey(l.Seq), encode(l)}
		step.New.Bytes += int64(len(put.Value))
		b.Guards = append(b.Guards, Guard{put.Key, 0})
		b.Puts = append(b.Puts, put)
	}
	for _, n := range step.Sealed {
		b.Guards = append(b.Guards, Guard{n.key, n.Revision})
		b.Deletes = append(b.Deletes, n.key)
	}
	for i := range step.Leave {
		b.Deletes = append(b.Deletes, auditLineKey(step.Old.Base+1+int64(i)))
	}
	b.Puts = append(b.Puts, Put{auditHeadKey, encode(step.New)})
	rev, err := s.commit(context.WithoutCancel(ctx), b)
	step.New.Revision = rev
	return step.New, err
}
