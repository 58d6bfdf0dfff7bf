package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const (
	sealEvery  = time.Second
	tendEvery  = time.Hour        // between two prunes of old lines; the daemon's log then gets the head's hash
	tendAgain  = 10 * time.Minute // after a prune by size failed, as by a damaged line
	sealBatch  = 2000             // the most operations of one commit, as other writers wait for it
	pruneBatch = 5000
	// clockDoubt is the time after the start without pruning by age: a wrong clock may be set in that time.
	clockDoubt = 24 * time.Hour
)

// Options of a Log. Keep and MaxBytes bound the age and size of the chain; 0: no bound.
type Options struct {
	Keep     time.Duration
	MaxBytes int64
	Now      func() time.Time
	Clock    func() error // why Now can't be believed, so that no line leaves for its age; nil: it always can
	Log      logrus.FieldLogger
}

// Log is the audit log. Its methods may be called concurrently.
type Log struct {
	Options
	store   *store.Store
	refused refusals
	began   time.Time

	mu       sync.Mutex // locked while the chain is written
	doubt    *doubt     // the last step, if its outcome is unknown; else nil
	bytes    int64      // size of the chain after the last write
	anchored int64      // the last place whose hash was written to the daemon's log
}

// New returns a Log over a store. Only one Log may write a store's chain.
func New(s *store.Store, o Options) *Log {
	return &Log{Options: o, store: s, began: o.Now()}
}

// Run seals and prunes until ctx is done, and seals once more at the end. It first seals the lines that an earlier
// process left. It must be called once only.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(sealEvery)
	defer tick.Stop()
	var tended time.Time
	var pause time.Duration // until the next prune by size
	failing := false
	for {
		err := l.Seal(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			l.Log.WithError(err).Error("audit lines can't be sealed yet; those of changes are kept until they can")
		}
		failing = err != nil
		if since := l.Now().Sub(tended); !failing && (since >= tendEvery || since >= pause && l.overflows()) {
			tended, pause = l.Now(), 0
			if err := errors.Join(l.Prune(ctx), l.anchor(ctx)); err != nil && ctx.Err() == nil {
				pause = tendAgain
				l.Log.WithError(err).Error("looking after the audit log")
			}
		}
		select {
		case <-ctx.Done():
			ctx = context.WithoutCancel(ctx)
			if err := errors.Join(l.seal(ctx, true), l.anchor(ctx)); err != nil {
				l.Log.WithError(err).Error("the last audit lines are not sealed; those of changes are sealed at the next start, those of refused calls are lost")
			}
			return
		case <-tick.C:
		}
	}
}

// anchor writes the chain's head to the daemon's log, unless it is there already. With a copy of that log, an operator
// can prove more than with the chain alone.
func (l *Log) anchor(ctx context.Context) error {
	head, err := l.store.AuditHead(ctx)
	if err != nil || head.Seq == 0 {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if head.Seq != l.anchored {
		l.Log.WithField("head", Anchor{head.Seq, head.Hash}.String()).Info("audit log")
		l.anchored = head.Seq
	}
	return nil
}

// overflows reports whether the chain exceeds MaxBytes.
func (l *Log) overflows() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.MaxBytes > 0 && l.bytes > l.MaxBytes
}

// Record commits a line without a change, such as that of a read that returns a secret. The line is durable when
// Record returns nil, before the secret is returned.
func (l *Log) Record(ctx context.Context, line node.AuditLine) error {
	c := store.NewChange()
	c.Audit(line)
	if _, err := l.store.Commit(ctx, c); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// Seal moves all lines to the chain.
func (l *Log) Seal(ctx context.Context) error { return l.seal(ctx, false) }

func (l *Log) seal(ctx context.Context, last bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.settle(ctx); err != nil {
		return fmt.Errorf("audit: an earlier step of the chain: %w", err)
	}
	for more := true; more; {
		room := l.store.Fit(sealBatch, 1)
		fresh, left, err := l.store.NewLines(ctx, room)
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		for _, n := range fresh {
			room -= n.Operations()
		}
		refused := l.refused.drain(l.Now(), last)
		if room = max(room, 0); len(refused) > room {
			l.refused.putBack(refused[room:])
			refused, left = refused[:room], true
		}
		more = left
		if len(fresh)+len(refused) == 0 {
			return nil
		}
		slices.SortStableFunc(fresh, func(a, b store.NewLines) int { return cmp.Compare(a.Revision, b.Revision) })
		step := store.ChainStep{Sealed: fresh}
		for _, n := range fresh {
			for _, line := range n.Lines {
				step.Join = append(step.Join, node.SealedLine{AuditLine: line, Revision: n.Revision})
			}
		}
		for _, line := range refused {
			step.Join = append(step.Join, node.SealedLine{AuditLine: line})
		}
		slices.SortStableFunc(step.Join, func(a, b node.SealedLine) int { return a.Time.Compare(b.Time.Time) })
		if err := l.extend(ctx, &step); err != nil {
			if errors.Is(err, store.ErrUnknownOutcome) {
				l.doubt = &doubt{err, refused}
			} else {
				l.refused.putBack(refused)
			}
			return fmt.Errorf("audit: %w", err)
		}
	}
	return nil
}

// doubt is a step whose outcome is unknown. Its lines of refused calls are in no record. They would be lost, or be in
// the chain twice, if the next step did not wait for the outcome.
type doubt struct {
	err     error
	refused []node.AuditLine
}

// settle finds the outcome of a doubt. After it, the next step reads the head again.
func (l *Log) settle(ctx context.Context) error {
	if l.doubt == nil {
		return nil
	}
	_, err := l.store.Settle(ctx, l.doubt.err)
	if errors.Is(err, store.ErrUnknownOutcome) {
		return err
	}
	if err != nil {
		l.refused.putBack(l.doubt.refused)
	}
	l.doubt = nil
	return nil
}

// extend commits a step after the current head of the chain.
func (l *Log) extend(ctx context.Context, step *store.ChainStep) error {
	head, err := l.store.AuditHead(ctx)
	if err != nil {
		return err
	}
	if head.Hash == "" {
		head.Hash, head.BaseHash = Genesis, Genesis
	}
	step.Old, step.New = head, head
	return l.commit(ctx, step)
}

// commit sets the places of the new lines after the head, and commits the step.
func (l *Log) commit(ctx context.Context, step *store.ChainStep) error {
	for i := range step.Join {
		line := &step.Join[i]
		line.Seq, line.Prev = step.New.Seq+1, step.New.Hash
		line.Hash = Hash(*line)
		step.New.Seq, step.New.Hash = line.Seq, line.Hash
	}
	head, err := l.store.Seal(ctx, *step)
	if err == nil {
		l.bytes = head.Bytes
	}
	return err
}

// Prune removes the oldest lines that exceed the bounds of age and size, and adds a line about that.
func (l *Log) Prune(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for full := false; ; {
		head, err := l.store.AuditHead(ctx)
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		full = full || l.MaxBytes > 0 && head.Bytes > l.MaxBytes
		batch := l.store.Fit(pruneBatch, 1)
		records, err := l.store.AuditLines(ctx, head.Base, batch)
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		step := store.ChainStep{Old: head, New: head}
		why, err := l.leaving(&step, records, full)
		if step.Leave == 0 {
			return err
		}
		line := Line(ctx, l.Now(), node.ActionPrune)
		line.Comment = fmt.Sprintf("lines %d to %d, for their %s", head.Base+1, step.New.Base, why)
		step.Join = []node.SealedLine{{AuditLine: line}}
		if err := l.commit(ctx, &step); err != nil {
			return fmt.Errorf("audit: prune lines: %w", err)
		}
		if step.Leave < batch {
			return nil
		}
	}
}

// leaving moves the base of a step past the lines to prune, and returns why they are pruned. A prune by size frees a
// tenth of MaxBytes. A damaged line stays, with all lines after it, as it is evidence.
func (l *Log) leaving(step *store.ChainStep, records []store.AuditRecord, full bool) (why string, err error) {
	limit := l.Now().Add(-l.Keep)
	byAge := l.Keep > 0 && l.Now().Sub(l.began) >= clockDoubt && (l.Clock == nil || l.Clock() == nil)
	for _, rec := range records {
		if rec.Err != nil || rec.Seq != step.New.Base+1 {
			return why, fmt.Errorf("audit: line %d is damaged, so it and all lines after it are not pruned: see `espm audit verify`", step.New.Base+1)
		}
		old := byAge && rec.Time.Before(limit)
		large := full && step.New.Bytes > l.MaxBytes-l.MaxBytes/10
		if !old && !large || rec.Seq == step.Old.Seq {
			return why, nil
		}
		if why = "age"; !old {
			why = "size"
		}
		step.New.Base, step.New.BaseHash = rec.Seq, rec.Hash
		step.New.Bytes -= rec.Size
		step.Leave++
	}
	return why, nil
}
