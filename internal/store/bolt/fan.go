package bolt

import (
	"fmt"
	"sort"
	"strings"
	"sync"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/store"
)

// fan reads the history once for all watches, however many there are. A commit wakes only the watches of the keys that
// it changed.
type fan struct {
	engine *Engine

	mu     sync.Mutex
	topics map[string]*topic // by prefix
	at     int64             // the topics have all events up to this revision, from theirs on
	ended  chan struct{}     // closed when the goroutine that reads has ended
}

// topic has the newest events of a prefix, for all its watches. The mutex of the fan guards it.
type topic struct {
	prefix  string
	watches int
	from    int64         // events are complete after this revision
	events  []store.Event // at most maxPageEvents and maxPageBytes
	bytes   int
	news    chan struct{} // closed and replaced when there are more events
	told    int64         // the revision at which news was closed last
	err     error         // ends the watches
}

// A watch without events is told this often how far the history is. A watch that falls behind then reads
// from a revision that the history still has.
const maxQuietRevisions = 1000

func newFan(e *Engine) *fan {
	return &fan{engine: e, topics: map[string]*topic{}, ended: make(chan struct{})}
}

// run reads after each commit, until the engine closes.
func (f *fan) run() {
	defer close(f.ended)
	for {
		changed := f.engine.revisionChanged() // taken before the read: what is committed after the read closes it
		f.out()
		select {
		case <-changed:
		case <-f.engine.closed:
			return
		}
	}
}

// out gives the topics what was committed since the last time.
func (f *fan) out() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for more := len(f.topics) > 0; more; {
		p, err := f.engine.readPage(f.watched, f.at)
		if err != nil {
			f.fail(err)
			return
		}
		f.at, more = p.last, p.more
		for _, t := range f.topics {
			t.add(p, f.at)
		}
	}
}

func (f *fan) watched(key string) bool {
	for prefix := range f.topics {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// fail ends all watches. Those that come later begin anew.
func (f *fan) fail(err error) {
	for _, t := range f.topics {
		t.err = err
		close(t.news)
	}
	clear(f.topics)
}

// add takes the events of the topic from a page, and drops the oldest above the bounds.
func (t *topic) add(p page, at int64) {
	had := len(t.events)
	for _, event := range p.events {
		if strings.HasPrefix(event.Key, t.prefix) {
			t.events = append(t.events, event)
			t.bytes += len(event.Value)
		}
	}
	if len(t.events) == had && at-t.told < maxQuietRevisions {
		return
	}
	for len(t.events) > 0 && (len(t.events) > maxPageEvents || t.bytes > maxPageBytes || t.events[0].Revision <= t.from) {
		t.from = t.events[0].Revision
		t.bytes -= len(t.events[0].Value)
		t.events = t.events[1:]
	}
	t.told = at
	close(t.news)
	t.news = make(chan struct{})
}

// join returns the topic of a prefix, for a watch that calls leave when it ends.
func (f *fan) join(prefix string) (*topic, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.topics) == 0 { // nobody has read since
		if err := f.engine.view(func(tx *bbolt.Tx) (err error) { f.at, err = readRevision(tx); return err }); err != nil {
			return nil, err
		}
	}
	t := f.topics[prefix]
	if t == nil {
		t = &topic{prefix: prefix, from: f.at, told: f.at, news: make(chan struct{})}
		f.topics[prefix] = t
	}
	t.watches++
	return t, nil
}

func (f *fan) leave(t *topic) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.watches--; t.watches == 0 && f.topics[t.prefix] == t {
		delete(f.topics, t.prefix)
	}
}

// following returns what follows a revision. A watch that is behind its topic reads the history by itself. News is
// closed once there is more than the page has.
func (f *fan) following(t *topic, after int64) (p page, news <-chan struct{}, err error) {
	f.mu.Lock()
	at, from, events, news, err := f.at, t.from, t.events, t.news, t.err
	f.mu.Unlock()
	if err == nil && after < from {
		if p, err = f.engine.readPage(func(key string) bool { return strings.HasPrefix(key, t.prefix) }, after); err == nil && !p.more {
			p.last, p.more = max(p.last, from), true // the rest is in the topic
		}
	} else {
		first := sort.Search(len(events), func(i int) bool { return events[i].Revision > after })
		p = page{events: events[first:], last: max(after, at)}
	}
	if err != nil {
		return p, nil, fmt.Errorf("watch %q: %w", t.prefix, err)
	}
	return p, news, nil
}
