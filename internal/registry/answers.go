package registry

import (
	"slices"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/node"
)

const (
	answerLife = 10 * time.Minute
	maxAnswers = 4096
)

// answers keeps private keys, in memory only, so that a retry of a call whose
// answer was lost gets the same one.
type answers struct {
	now func() time.Time

	mu    sync.Mutex
	byID  map[string]answer
	order []string // request ids, oldest first
}

type answer struct {
	serial  node.Serial
	key     bootstrap.Secret
	expires time.Time
}

func (a *answers) put(id string, serial node.Serial, key bootstrap.Secret) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byID == nil {
		a.byID = map[string]answer{}
	}
	if _, again := a.byID[id]; again {
		a.order = slices.DeleteFunc(a.order, func(other string) bool { return other == id })
	}
	a.order = append(a.order, id)
	a.byID[id] = answer{serial, key, a.now().Add(answerLife)}
	for len(a.order) > maxAnswers {
		a.drop()
	}
}

// get returns the key answered to a request id, if it is that of the serial.
func (a *answers) get(id string, serial node.Serial) (bootstrap.Secret, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	found, ok := a.byID[id]
	if !ok || found.serial != serial || a.now().After(found.expires) {
		return nil, false
	}
	return found.key, true
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
