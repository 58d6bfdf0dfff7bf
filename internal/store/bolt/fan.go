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

// fanLoop reads after each commit, until the engine closes.
func (e *Engine) fanLoop() {
	defer close(e.fan.ended)
	for {
		changed := e.revisionChanged() // taken before the read: what is committed after the read closes it
		e.fanOut()
		select {
		case <-changed:
		case <-e.closed:
			return
		}
	}
}

// fanOut gives the topics what was committed since the last time.
func (e *Engine) fanOut() {
	e.fan.mu.Lock()
	defer e.fan.mu.Unlock()
	for more := len(e.fan.topics) > 0; more; {
		p, err := e.readPage(e.fan.watched, e.fan.at)
		if err != nil {
			e.fan.fail(err)
			return
		}
		e.fan.at, more = p.last, p.more
		for _, t := range e.fan.topics {
			t.add(p, e.fan.at)
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
func (e *Engine) join(prefix string) (*topic, error) {
	e.fan.mu.Lock()
	defer e.fan.mu.Unlock()
	if len(e.fan.topics) == 0 { // nobody has read since
		if err := e.view(func(tx *bbolt.Tx) (err error) { e.fan.at, err = readRevision(tx); return err }); err != nil {
			return nil, err
		}
	}
	t := e.fan.topics[prefix]
	if t == nil {
		t = &topic{prefix: prefix, from: e.fan.at, told: e.fan.at, news: make(chan struct{})}
		e.fan.topics[prefix] = t
	}
	t.watches++
	return t, nil
}

func (e *Engine) leave(t *topic) {
	e.fan.mu.Lock()
	defer e.fan.mu.Unlock()
	if t.watches--; t.watches == 0 && e.fan.topics[t.prefix] == t {
		delete(e.fan.topics, t.prefix)
	}
}

// following returns what follows a revision. A watch that is behind its topic reads the history by itself. News is
// closed once there is more than the page has.
func (e *Engine) following(t *topic, after int64) (p page, news <-chan struct{}, err error) {
	e.fan.mu.Lock()
	at, from, events, news, err := e.fan.at, t.from, t.events, t.news, t.err
	e.fan.mu.Unlock()
	if err == nil && after < from {
		if p, err = e.readPage(func(key string) bool { return strings.HasPrefix(key, t.prefix) }, after); err == nil && !p.more {
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
