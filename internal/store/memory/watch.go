package memory

import (
	"context"
	"fmt"
	"iter"
	"sort"
	"strings"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// entry has the changes of one revision.
type entry struct {
	revision int64
	changes  []change
}

type change struct {
	key     string
	deleted bool
}

// Watch implements store.Engine.
func (e *Engine) Watch(ctx context.Context, prefix string, after int64) iter.Seq2[store.Event, error] {
	return func(yield func(store.Event, error) bool) {
		for {
			if err := ctx.Err(); err != nil {
				yield(store.Event{}, err)
				return
			}
			events, last, changed, err := e.page(prefix, after)
			if err != nil {
				yield(store.Event{}, fmt.Errorf("watch %q: %w", prefix, err))
				return
			}
			for _, ev := range events {
				if err := ctx.Err(); err != nil {
					yield(store.Event{}, err)
					return
				}
				if !yield(ev, nil) {
					return
				}
			}
			if after = last; len(events) > 0 {
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// page returns the events of the next revision that has any, and the last revision that it has examined.
func (e *Engine) page(prefix string, after int64) (events []store.Event, last int64, changed <-chan struct{}, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return nil, after, nil, errClosed
	}
	if after < e.disk.floor {
		return nil, after, nil, fmt.Errorf("after revision %d, history is kept after %d: %w", after, e.disk.floor, node.ErrCompacted)
	}
	from := sort.Search(len(e.disk.history), func(i int) bool { return e.disk.history[i].revision > after })
	for _, en := range e.disk.history[from:] {
		after = en.revision
		for _, c := range en.changes {
			if !strings.HasPrefix(c.key, prefix) {
				continue
			}
			switch r, ok := e.disk.records[c.key]; {
			case c.deleted && !ok:
				events = append(events, store.Event{Key: c.key, Revision: en.revision, Deleted: true})
			case !c.deleted && ok && r.Revision == en.revision:
				events = append(events, store.Event{Key: c.key, Revision: en.revision, Value: clone(r).Value})
			}
		}
		if len(events) > 0 {
			break
		}
	}
	return events, after, e.changed, nil
}
