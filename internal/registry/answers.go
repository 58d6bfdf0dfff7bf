package registry

import (
	"slices"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/secret"
)

const (
	answerLife = 10 * time.Minute
	maxAnswers = 4096
)

// answers holds private keys, in memory only. If an answer was lost, a retry of the call gets the same answer.
type answers struct {
	now func() time.Time

	mu    sync.Mutex
	byKey map[string]answer // by Request.Key, which names the caller: no caller gets another's keys
	order []string          // Request.Key, oldest first
}

type answer struct {
	serial  node.Serial
	key     secret.Text
	expires time.Time
}

func (a *answers) put(request string, serial node.Serial, key secret.Text) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byKey == nil {
		a.byKey = map[string]answer{}
	}
	if _, again := a.byKey[request]; again {
		a.order = slices.DeleteFunc(a.order, func(other string) bool { return other == request })
	}
	a.order = append(a.order, request)
	a.byKey[request] = answer{serial, key, a.now().Add(answerLife)}
	for len(a.order) > maxAnswers {
		a.drop()
	}
}

// get returns the private key of a request's answer, if that answer had the certificate with the serial.
func (a *answers) get(request string, serial node.Serial) (secret.Text, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	found, ok := a.byKey[request]
	if !ok || found.serial != serial || a.now().After(found.expires) {
		return secret.Text{}, false
	}
	return found.key, true
}

// prune drops expired keys.
func (a *answers) prune() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.order) > 0 && a.now().After(a.byKey[a.order[0]].expires) {
		a.drop()
	}
}

func (a *answers) drop() {
	delete(a.byKey, a.order[0])
	a.order = a.order[1:]
}
