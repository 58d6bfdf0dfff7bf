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
}

// version is what the table has of a token's name.
type version struct {
	hash     string // "": no secret lets anybody in
	revision int64
	err      error // of a write with an unknown outcome
}

func newTokenTable() *tokenTable {
	return &tokenTable{byHash: map[string]node.Token{}, current: map[string]version{}, doubted: make(chan struct{}, 1)}
}

// set takes a token as the store has it. Of two writes at once the later one counts.
func (t *tokenTable) set(one node.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, found := t.current[one.Name]
	if found && old.revision > one.Revision {
		return
	}
	delete(t.byHash, old.hash)
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
	t.current[name] = version{revision: old.revision, err: err}
	select {
	case t.doubted <- struct{}{}:
	default:
	}
}

// inDoubt returns the errors of writes with an unknown outcome, by name.
func (t *tokenTable) inDoubt() map[string]error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := map[string]error{}
	for name, v := range t.current {
		if v.err != nil {
			all[name] = v.err
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
			one, err := t.store.TokenAfter(ctx, name, doubt)
			switch {
			case err == nil:
				t.table.set(one)
			case errors.Is(err, node.ErrTokenNotFound):
				t.table.forget(name)
			default:
				t.log.WithField("token", name).WithError(err).Warn("the token is refused: whether its last change was stored is unknown")
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

// forget ends the doubt about a token that the store does not have.
func (t *tokenTable) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current[name].err != nil {
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
