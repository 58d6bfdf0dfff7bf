package registry

import (
	"sync"
	"time"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/node"
)

const (
	answerLife = 10 * time.Minute
	maxAnswers = 4096
)

// answers keeps, in memory only, bundles with a private key, so that a retry
// of a call whose answer was lost gets the same one.
type answers struct {
	now func() time.Time

	mu    sync.Mutex
	byID  map[string]answer
	order []string // request ids, oldest first
}

type answer struct {
	serial  node.Serial
	bundle  bootstrap.Bundle
	expires time.Time
}

func (a *answers) put(id string, serial node.Serial, b bootstrap.Bundle) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byID == nil {
		a.byID = map[string]answer{}
	}
	if _, again := a.byID[id]; !again {
		a.order = append(a.order, id)
	}
	a.byID[id] = answer{serial, b, a.now().Add(answerLife)}
	for len(a.order) > maxAnswers {
		a.drop()
	}
}

// get returns the bundle answered to a request id, if it is that of the serial.
func (a *answers) get(id string, serial node.Serial) (bootstrap.Bundle, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	found, ok := a.byID[id]
	if !ok || found.serial != serial || a.now().After(found.expires) {
		return bootstrap.Bundle{}, false
	}
	return found.bundle, true
}

// prune drops what has expired.
func (a *answers) prune() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.order) > 0 && a.now().After(a.byID[a.order[0]].expires) {
		a.drop()
	}
}

func (a *answers) drop() {
	delete(a.byID, a.order[0])
	a.order = a.order[1:]
}
