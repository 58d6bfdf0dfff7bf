package auth

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// tokenTable has the tokens in memory, by the hash of their secret.
type tokenTable struct {
	mu      sync.RWMutex
	byHash  map[string]node.Token
	current map[string]version // by name, of revoked tokens too
	doubted chan struct{}      // has an element when there may be a write in doubt
	doubts  int                // how many there were
}

// version is what the table has of a token's name.
type version struct {
	hash     string // "": no secret lets anybody in
	revision int64
	err      error // of a write with an unknown outcome
	doubt    int   // the number of that doubt, of all; 0: there is none
}

func newTokenTable() *tokenTable {
	return &tokenTable{byHash: map[string]node.Token{}, current: map[string]version{}, doubted: make(chan struct{}, 1)}
}

// set takes a token as the store has it. Of two writes at once the later one counts.
func (t *tokenTable) set(one node.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, found := t.current[one.Name]; found && old.revision > one.Revision {
		return
	}
	t.put(one)
}

func (t *tokenTable) put(one node.Token) {
	delete(t.byHash, t.current[one.Name].hash)
	now := version{revision: one.Revision}
	if one.RevokedAt.IsZero() {
		now.hash = one.Hash
		t.byHash[one.Hash] = one
	}
	t.current[one.Name] = now
}

// doubt refuses a token until the outcome of its write is known.
func (t *tokenTable) doubt(name string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.current[name]
	delete(t.byHash, old.hash)
	t.doubts++
	t.current[name] = version{revision: old.revision, err: err, doubt: t.doubts}
	select {
	case t.doubted <- struct{}{}:
	default:
	}
}

// inDoubt returns the tokens whose last write has an unknown outcome, by name.
func (t *tokenTable) inDoubt() map[string]version {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := map[string]version{}
	for name, v := range t.current {
		if v.doubt > 0 {
			all[name] = v
		}
	}
	return all
}

// find returns the token that is not revoked and has the hash. It may have expired.
func (t *tokenTable) find(hash string) (node.Token, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	found, ok := t.byHash[hash]
	if !ok {
		return found, fmt.Errorf("%w: none has that hash", node.ErrTokenNotFound)
	}
	return found, nil
}

// settleAgain is how long a write in doubt waits until the store is asked again.
const settleAgain = time.Second

// settle takes tokens whose write was in doubt from the store, until ctx is done.
func (t *Tokens) settle(ctx context.Context) {
	for {
		var again <-chan time.Time
		for name, doubt := range t.table.inDoubt() {
			one, err := t.store.TokenAfter(ctx, name, doubt.err)
			switch {
			case err == nil:
				t.table.settle(doubt, one)
			case errors.Is(err, node.ErrTokenNotFound):
				t.table.forget(name, doubt)
			default:
				t.log.WithField("token", name).WithError(err).Warn("the token is refused: the store has not confirmed the last change of the token; espm retries")
				again = time.After(settleAgain)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.table.doubted:
		case <-again:
		}
	}
}

// settle ends a doubt with the token as the store has it. It does nothing if the token was written again meanwhile:
// the store was read before that write, which may be in doubt itself.
func (t *tokenTable) settle(doubt version, one node.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current[one.Name].doubt == doubt.doubt {
		t.put(one)
	}
}

// forget ends a doubt about a token that the store does not have, as settle does.
func (t *tokenTable) forget(name string, doubt version) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current[name].doubt == doubt.doubt {
		delete(t.current, name)
	}
}

// endedFor is how long Credentials has a token that has expired.
const endedFor = 7 * 24 * time.Hour

// Credentials are the tokens that expire and are not revoked. One that expired over a week ago is not missed any more.
func (t *Tokens) Credentials() []node.Credential {
	t.table.mu.RLock()
	defer t.table.mu.RUnlock()
	var all []node.Credential
	for _, one := range t.table.byHash {
		if one.ExpiresAt.IsZero() || t.now().Sub(one.ExpiresAt) > endedFor {
			continue
		}
		begin := one.CreatedAt
		if one.RotatedAt.After(begin) {
			begin = one.RotatedAt
		}
		all = append(all, node.Credential{Kind: node.BearerToken, Name: one.Name, NotBefore: begin, NotAfter: one.ExpiresAt})
	}
	return all
}
