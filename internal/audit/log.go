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
	tendEvery  = time.Hour        // old lines leave, and the daemon's log gets the head's hash
	tendAgain  = 10 * time.Minute // after lines could not leave for their size, such as one that is damaged
	sealBatch  = 2000             // operations to a commit, as other writers wait for it
	pruneBatch = 5000
	// clockDoubt is how long a clock that is wrong at the start has to be put right before lines leave for their age.
	clockDoubt = 24 * time.Hour
)

// Options of a Log. Keep and MaxBytes bound what is kept; 0: no bound.
type Options struct {
	Keep     time.Duration
	MaxBytes int64
	Now      func() time.Time
	Clock    func() error // why Now can't be believed, so that no line leaves for its age; nil: it always can
	Log      logrus.FieldLogger
}

// Log is the audit log. Its methods may be called at once.
type Log struct {
	Options
	store   *store.Store
	refused refusals
	began   time.Time

	mu       sync.Mutex // held by who writes the chain
	doubt    *doubt     // of the last step; nil: there is none
	bytes    int64      // that it took when it was written last
	anchored int64      // the head's place, as the daemon's log was told
}

// New returns a Log over a store. Only one may write a store's chain.
func New(s *store.Store, o Options) *Log {
	return &Log{Options: o, store: s, began: o.Now()}
}

// Run seals and prunes until ctx is done, and seals once more then: what a kill left first. It is called once.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(sealEvery)
	defer tick.Stop()
	var tended time.Time
	var pause time.Duration // until lines leave for their size
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

// anchor tells the daemon's log where the chain ends, unless that was told: whoever keeps that log can prove more than the chain can.
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

// overflows tells whether lines have to leave for their size.
func (l *Log) overflows() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.MaxBytes > 0 && l.bytes > l.MaxBytes
}

// Record commits a line that no change goes with, such as that of a read that gives out a secret. It is
// durable when Record returns nil: before the secret is given out.
func (l *Log) Record(ctx context.Context, line node.AuditLine) error {
	c := store.NewChange()
	c.Audit(line)
	if _, err := l.store.Commit(ctx, c); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// Seal brings all lines there are into the chain.
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
		refused := l.refused.take(l.Now(), last)
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

// doubt is a step that may be in the chain or not, with the lines of refused calls in it: no
// record holds those, so they would be lost, or be there twice.
type doubt struct {
	err     error
	refused []node.AuditLine
}

// settle brings a doubt to its end. The next step goes by the head as it is then.
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

// extend gives the lines of a step their places and commits it.
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

// commit gives the lines that join their places after the head, and commits the step.
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

// Prune takes the oldest lines off that are too old or too many. That it did is a line.
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
			return fmt.Errorf("audit: taking lines off: %w", err)
		}
		if step.Leave < batch {
			return nil
		}
	}
}

// leaving moves the base of a step past the lines that leave, and says why. For their size, as
// many leave as make a tenth of room. A damaged line stays, with all after it: it is evidence.
func (l *Log) leaving(step *store.ChainStep, records []store.AuditRecord, full bool) (why string, err error) {
	limit := l.Now().Add(-l.Keep)
	byAge := l.Keep > 0 && l.Now().Sub(l.began) >= clockDoubt && (l.Clock == nil || l.Clock() == nil)
	for _, rec := range records {
		if rec.Err != nil || rec.Seq != step.New.Base+1 {
			return why, fmt.Errorf("audit: no line is taken off from %d on, which is damaged: see `espm audit verify`", step.New.Base+1)
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
