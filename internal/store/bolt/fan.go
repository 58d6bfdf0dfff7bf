package bolt

import (
	"fmt"
	"sort"
	"strings"
	"sync"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/store"
)

// fan reads the history once for all watches. A commit wakes only the watches of the keys that it changed.
type fan struct {
	engine *Engine

	mu     sync.Mutex
	topics map[string]*topic // by prefix
	at     int64             // each topic has all events after topic.from, up to this revision
	ended  chan struct{}     // closed when run has ended
}

// topic has the newest events of a prefix, for all watches of that prefix. The mutex of the fan guards it.
type topic struct {
	prefix  string
	watches int
	from    int64         // the topic has all events after this revision
	events  []store.Event // at most maxPageEvents and maxPageBytes
	bytes   int
	news    chan struct{} // closed and replaced when there are more events
	told    int64         // the revision at which news was last closed
	err     error         // the error that ends the watches
}

// A watch without events gets the present revision at this interval. If the watch later falls behind, it
// reads from a revision that the history still has.
const maxQuietRevisions = 1000

func newFan(e *Engine) *fan {
	return &fan{engine: e, topics: map[string]*topic{}, ended: make(chan struct{})}
}

// run reads the history after each commit, until the engine closes.
func (f *fan) run() {
	defer close(f.ended)
	for {
		changed := f.engine.revisionChanged() // before the read, so that a commit after the read closes it
		f.out()
		select {
		case <-changed:
		case <-f.engine.closed:
			return
		}
	}
}

// out adds the events since the last call to the topics.
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

// fail ends all watches. Later watches get new topics.
func (f *fan) fail(err error) {
	for _, t := range f.topics {
		t.err = err
		close(t.news)
	}
	clear(f.topics)
}

// add appends the events of the topic in a page, and drops the oldest events above the limits.
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

// join returns the topic of a prefix. The watch must call leave when it ends.
func (f *fan) join(prefix string) (*topic, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.topics) == 0 { // without topics, f.at is outdated
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

// following returns the events after a revision. A watch that is behind its topic reads the history
// itself. news is closed as soon as there are later events.
func (f *fan) following(t *topic, after int64) (p page, news <-chan struct{}, err error) {
	f.mu.Lock()
	at, from, events, news, err := f.at, t.from, t.events, t.news, t.err
	f.mu.Unlock()
	if err == nil && after < from {
		if p, err = f.engine.readPage(func(key string) bool { return strings.HasPrefix(key, t.prefix) }, after); err == nil && !p.more {
			p.last, p.more = max(p.last, from), true // the topic has the later events
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
