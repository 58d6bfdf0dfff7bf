package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const (
	readAtOnce = 500
	// maxRead is the most lines that one page of a list reads.
	maxRead = 10_000
)

// Filter selects the lines that match all its fields that are set.
type Filter struct {
	Principal, Outcome string
	Certname           node.Certname
	UID                node.UID
	Action             node.Action
	Since, Until       time.Time // from Since on, before Until
}

func (f Filter) match(l node.SealedLine) bool {
	return (f.Principal == "" || l.Principal == f.Principal) &&
		(f.Outcome == "" || l.Outcome == f.Outcome) &&
		(f.Certname == "" || l.Certname == f.Certname) &&
		(f.UID == "" || l.UID == f.UID) &&
		(f.Action == "" || l.Action == f.Action) &&
		(f.Since.IsZero() || !l.Time.Before(f.Since)) &&
		(f.Until.IsZero() || l.Time.Before(f.Until))
}

// mayRead refuses a caller without a role, and one that sees only its own records: the log has everybody's.
func mayRead(ctx context.Context) error {
	if role := node.CallerOf(ctx).Role; role != node.Admin && role != node.Reader {
		return node.NotPermitted("", "only admins and readers see the audit log")
	}
	return nil
}

// List returns up to limit lines before a sequence number, newest first, and the number before which the next page
// starts (0: none follows). With before 0, List seals first and starts at the newest line. It reads at most 10,000
// lines, so a page may be short although more follow. It leaves out damaged lines; Verify finds them.
// Error: node.ErrNotPermitted for a caller that is neither admin nor reader.
func (l *Log) List(ctx context.Context, f Filter, before int64, limit int) (page []node.SealedLine, next int64, err error) {
	if err := mayRead(ctx); err != nil {
		return nil, 0, err
	}
	if before == 0 {
		if err := l.Seal(ctx); err != nil {
			return nil, 0, err
		}
	}
	head, err := l.store.AuditHead(ctx)
	if err != nil {
		return nil, 0, err
	}
	if before == 0 || before > head.Seq+1 {
		before = head.Seq + 1
	}
	for looked := 0; looked < maxRead && before > head.Base+1; looked += readAtOnce {
		after := max(before-1-readAtOnce, head.Base)
		records, err := l.store.AuditLines(ctx, after, int(before-1-after))
		if err != nil {
			return nil, 0, err
		}
		for _, rec := range slices.Backward(records) {
			if rec.Err != nil || rec.Seq >= before || !f.match(rec.SealedLine) {
				continue
			}
			if page = append(page, rec.SealedLine); len(page) == limit && rec.Seq > head.Base+1 {
				return page, rec.Seq, nil
			}
		}
		before = after + 1
	}
	if before <= head.Base+1 {
		before = 0
	}
	return page, before, nil
}

// Export calls write with every line after a sequence number, oldest first. It seals first, so the lines of all
// finished calls are among them. A line that can't be read is an error, and so is a caller as in List.
func (l *Log) Export(ctx context.Context, after int64, write func([]node.SealedLine) error) error {
	if err := mayRead(ctx); err != nil {
		return err
	}
	if err := l.Seal(ctx); err != nil {
		return err
	}
	head, err := l.store.AuditHead(ctx)
	if err != nil {
		return err
	}
	for after = max(after, head.Base); after < head.Seq; {
		records, err := l.store.AuditLines(ctx, after, int(min(readAtOnce, head.Seq-after)))
		if err != nil {
			return err
		}
		if len(records) == 0 {
			return fmt.Errorf("audit: line %d is missing", after+1)
		}
		lines := make([]node.SealedLine, len(records))
		for i, rec := range records {
			if rec.Err != nil {
				return fmt.Errorf("audit: the line after %d: %w", after, rec.Err)
			}
			lines[i], after = rec.SealedLine, rec.Seq
		}
		if err := write(lines); err != nil {
			return err
		}
	}
	return nil
}

// Verified is what Verify found.
type Verified struct {
	Head  node.AuditHead
	Lines int64
	Flaw  *Flaw // the first flaw; nil if the chain has none
}

// Verify checks the chain from its base, the last pruned line, to its head, and compares it with an anchor if one is
// given. It holds a few hundred lines in memory at a time. Errors: a *TooOldError if the anchor is before the base, and
// that of List for the caller.
func (l *Log) Verify(ctx context.Context, expect *Anchor) (Verified, error) {
	if err := mayRead(ctx); err != nil {
		return Verified{}, err
	}
	if err := l.Seal(ctx); err != nil && !errors.Is(err, node.ErrStale) { // ErrStale: the head does not match the chain, which is found below
		return Verified{}, err
	}
	for {
		v, err := Walk(ctx, l.store.View, expect)
		if err != nil || v.Flaw == nil {
			return v, err
		}
		now, err := l.store.AuditHead(ctx)
		if err != nil {
			return v, err
		}
		if now.Base == v.Head.Base || v.Flaw.Seq > now.Base { // otherwise the line was pruned meanwhile
			return v, nil
		}
	}
}

// Walk is Verify on a store that nobody writes to. It does not check lines that are not sealed yet.
func Walk(ctx context.Context, lines store.View, expect *Anchor) (Verified, error) {
	head, err := lines.AuditHead(ctx)
	if err != nil {
		return Verified{}, err
	}
	v := Verified{Head: head}
	flawed := func(err error) (Verified, error) {
		if flaw, ok := errors.AsType[*Flaw](err); ok {
			v.Flaw, err = flaw, nil
		}
		return v, err
	}
	check := Checker{Expect: expect, Last: Anchor{head.Base, head.BaseHash}, First: head.Base + 1}
	if head.Hash == "" {
		check.Last.Hash = Genesis
	}
	if expect != nil && expect.Seq == head.Base && expect.Hash != head.BaseHash {
		return flawed(&Flaw{head.Base, fmt.Sprintf("its hash is %s, and was noted as %s: the chain was rewritten", head.BaseHash, expect.Hash)})
	}
	if err := checkAll(ctx, lines, head, &check); err != nil {
		v.Lines = check.Lines
		return flawed(err)
	}
	v.Lines = check.Lines
	if expect != nil && expect.Seq == head.Base {
		return v, nil
	}
	return flawed(check.End())
}

// checkAll checks the lines up to the head, and that no other record is among them.
func checkAll(ctx context.Context, lines store.View, head node.AuditHead, check *Checker) error {
	stray, err := lines.AuditLines(ctx, 0, 1)
	if err != nil {
		return err
	}
	if len(stray) > 0 && stray[0].Err == nil && stray[0].Seq <= head.Base {
		return &Flaw{stray[0].Seq, "it is older than what is kept"}
	}
	for check.Last.Seq < head.Seq {
		records, err := lines.AuditLines(ctx, check.Last.Seq, int(min(readAtOnce, head.Seq-check.Last.Seq)))
		if err != nil {
			return err
		}
		if len(records) == 0 {
			return &Flaw{check.Last.Seq + 1, fmt.Sprintf("it is missing, and so is all up to line %d, the last one", head.Seq)}
		}
		if err := checkRecords(records, check); err != nil {
			return err
		}
	}
	if head.Seq > 0 && check.Last.Hash != head.Hash {
		return &Flaw{head.Seq, "its hash is not that of the chain's head"}
	}
	beyond, err := lines.AuditLines(ctx, head.Seq, 1)
	if err != nil || len(beyond) == 0 {
		return err
	}
	if now, err := lines.AuditHead(ctx); err != nil || now.Seq > head.Seq { // the lines after head were sealed meanwhile
		return err
	}
	return &Flaw{head.Seq + 1, "it stands behind the chain's head"}
}

func checkRecords(records []store.AuditRecord, check *Checker) error {
	for _, rec := range records {
		if rec.Err != nil {
			return &Flaw{check.Last.Seq + 1, rec.Err.Error()}
		}
		if err := check.Check(rec.SealedLine); err != nil {
			return err
		}
	}
	return nil
}
